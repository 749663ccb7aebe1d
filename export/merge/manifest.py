"""manifest.json: what a merged directory holds, where it came from, how it was checked; and whether that still holds.

merge.json beside it is the record of the check alone; the manifest repeats it, and names every file with its hash.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.hashing import sha256_of
from export.files import File, differences, files_of
from train.files import write_whole

NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """A merged model's directory.

    Attributes:
        files: every file but the manifest.
        source: `run` (its name), `adapter_sha256`.
        base: `name` (of a local base its directory's name alone), `revision` (as in the config), `commit` or `files`
            (train/model/identity.py); `as_when_trained` is True, or None where the run did not record its base.
        vocabulary: `rows` of the embeddings, `tokens` of the tokenizer, `trimmed` rows, `bos`, `eos`, `pad`: ids.
        merge: the content of merge.json: verified, max_kl, parity, onto, dtype, rope, prompt_format, ...
        sha256: of the manifest file itself.
    """

    files: tuple[File, ...]
    source: dict[str, Any]
    base: dict[str, Any]
    vocabulary: dict[str, Any]
    merge: dict[str, Any]
    sha256: str

    @property
    def verified(self) -> bool:
        """Whether the merge says what the live model says."""
        return bool(self.merge["verified"])


def write_manifest(
    folder: Path, source: dict[str, Any], base: dict[str, Any], vocabulary: dict[str, Any], merge: dict[str, Any]
) -> Manifest:
    """Name and hash every file of the folder."""
    files = files_of(folder, (path for path in folder.rglob("*") if path.is_file() and path.name != NAME))
    content = {"source": source, "base": base, "vocabulary": vocabulary, "merge": merge}
    text = json.dumps({**content, "files": [asdict(file) for file in files]}, indent=2)
    write_whole(folder / NAME, text + "\n")
    return read_manifest(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a merged directory.

    Raises:
        UserError: there is none.
    """
    path = folder / NAME
    if not path.is_file():
        raise UserError(str(folder), f"no {NAME}: not a finished merge", "merge the run: python -m scripts.merge RUN")
    content: dict[str, Any] = json.loads(path.read_text())
    files = tuple(File(**file) for file in content.pop("files"))
    return Manifest(files=files, **content, sha256=sha256_of(path))


def require_intact(folder: Path, *, full: bool = False) -> Manifest:
    """The manifest, after a look at the files: each by its hash, but weights by their size unless `full`.

    Raises:
        UserError: naming the files that are missing or changed.
    """
    manifest = read_manifest(folder)
    different = list(differences(folder, manifest.files, full=full))
    if different:
        raise UserError(str(folder), f"not what was merged: {', '.join(different)}", "merge the run again")
    return manifest
