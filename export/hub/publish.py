"""What of a run goes where on the hub: planned and checked on this machine, before anything is sent (upload.py).

The merged model goes to branch main, each GPTQ and AWQ variant to a branch of its own name, the GGUF files together to
a repository of their own; the card, its pictures and licence files to each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from data.errors import UserError
from data.hashing import sha256_of
from export.artefact import Artefact, artefacts, record_of
from export.card.card import NAME as CARD
from export.card.card import changed_since, placed
from export.card.facts import PICTURES, Merge, merge_of
from export.card.gaps import NOT_VERIFIED, make_again
from export.card.metadata import for_gguf_repository
from export.files import File, differences
from export.merge.manifest import NAME as MANIFEST
from export.merge.manifest import Manifest
from train.run.directory import open_run

Say = Callable[[str], None]
MAIN = "main"
# Files of the run directory that its licences may require beside every copy.
COMPANIONS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Upload:
    """One file on its way.

    Attributes:
        path: in the repository; source: where it lies, or its content.
    """

    path: str
    source: Path | bytes
    size: int
    sha256: str


@dataclass(frozen=True)
class Destination:
    """A branch of a repository, and the files that belong there."""

    repo: str
    branch: str
    files: tuple[Upload, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def plan(run: Path, repo: str, gguf_repo: str | None, *, force: bool, say: Say) -> tuple[Destination, ...]:
    """Every destination of a run's files, main first; every file looked at and as it was recorded.

    Args:
        gguf_repo: for the GGUF files; None: the name of `repo` with -GGUF.
        force: also publish what is not verified.

    Raises:
        UserError: there is nothing to publish, it is not what was recorded, or it should not be published.
    """
    gguf_repo = gguf_repo or f"{repo}-GGUF"
    for option, name in (("--repo", repo), ("--gguf-repo", gguf_repo)):
        _require_repo_name(option, name)
    open_run(run)
    merge, manifest = _publishable_merge(run, force)
    variants = artefacts(run)
    for variant in variants:
        _require_publishable(run, variant, merge, manifest, force)
    card = _current_card(run, merge.verified and all(v.merge_verified for v in variants))

    hf = [variant for variant in variants if variant.method != "gguf"]
    gguf = [variant for variant in variants if variant.method == "gguf"]
    say(f"checking the sha256 of {len(manifest.files) + sum(len(v.files) for v in variants)} files ...")
    merged = [*_checked(run / merge.name, manifest.files), upload_of(run / merge.name / MANIFEST, MANIFEST)]
    about = _about(run, placed(card, repo, gguf_repo))
    found = [Destination(repo, MAIN, (*merged, *about))]
    found += [Destination(repo, v.name, (*_variant_files(run, v), *about)) for v in hf]
    if gguf:
        files = [file for v in gguf for file in _variant_files(run, v)]
        if gguf_repo == repo:
            found[0] = Destination(repo, MAIN, (*found[0].files, *files))
        else:
            own = for_gguf_repository(placed(card, repo, gguf_repo), repo)
            found.append(Destination(gguf_repo, MAIN, (*files, *_about(run, own))))
    return tuple(found)


def upload_of(source: Path | bytes, path: str) -> Upload:
    """A file, or its content, on its way to a path."""
    if isinstance(source, bytes):
        return Upload(path, source, len(source), hashlib.sha256(source).hexdigest())
    return Upload(path, source, source.stat().st_size, sha256_of(source))


def _require_repo_name(option: str, name: str) -> None:
    try:
        validate_repo_id(name)
        valid = name.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(option, f"{name!r} is no name of a repository", "give it as USER/NAME, such as jon/my-model")


def _publishable_merge(run: Path, force: bool) -> tuple[Merge, Manifest]:
    merge = merge_of(run)
    if merge is None:
        raise UserError(str(run), "nothing to publish: it is not merged", f"python -m scripts.merge {run}")
    if not merge.verified and not force:
        found = "this merge was not verified: it is not the model that was trained"
        raise UserError(str(run / merge.name), found, "merge again; --force publishes it, and its card says so")
    if merge.manifest is None:
        found = f"no {MANIFEST}, which says what was merged"
        raise UserError(str(run / merge.name), found, f"merge again: python -m scripts.merge {run}")
    return merge, merge.manifest


def _require_publishable(run: Path, variant: Artefact, merge: Merge, manifest: Manifest, force: bool) -> None:
    todo = f"make it again: {make_again(run, merge, variant)}; or pass --force, and the card says so"
    if force:
        return
    if variant.merged_sha256 != manifest.sha256:
        raise UserError(variant.name, "was made from another merge than the one that is there", todo)
    if not variant.merge_verified:
        raise UserError(variant.name, "was made from a merge that was not verified", todo)
    if variant.stranger and not variant.stranger["ok"]:
        raise UserError(variant.name, "failed a check when it was loaded back", todo)


def _current_card(run: Path, verified: bool) -> str:
    changed, todo = changed_since(run), f"python -m scripts.card {run}"
    if changed is None:
        raise UserError(str(run / CARD), "there is no card", f"write it first: {todo}")
    if changed:
        listed = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise UserError(str(run / CARD), f"was written before these changed: {listed}", f"write it again: {todo}")
    card = (run / CARD).read_text()
    if not verified and NOT_VERIFIED not in card:
        found = "does not say that the merge was not verified"
        raise UserError(str(run / CARD), found, f"write it again: {todo}")
    return card


def _about(run: Path, card: str) -> list[Upload]:
    """The card and what belongs beside it."""
    pictures = [run / picture for picture in PICTURES if (run / picture).is_file()]
    companions = sorted({path for pattern in COMPANIONS for path in run.glob(pattern) if path.is_file()})
    others = [upload_of(path, path.relative_to(run).as_posix()) for path in (*pictures, *companions)]
    return [upload_of(card.encode(), CARD), *others]


def _variant_files(run: Path, variant: Artefact) -> list[Upload]:
    """A variant's files and its record; a card that its quantizer left is replaced by ours."""
    folder, record = variant.folder(run), record_of(run, variant.name, variant.method)
    own = [file for file in variant.files if file.name != CARD]
    return [*_checked(folder, own), upload_of(record, record.name)]


def _checked(folder: Path, files: Sequence[File]) -> list[Upload]:
    """The files as they were recorded.

    Raises:
        UserError: naming those that are missing or changed since.
    """
    different = list(differences(folder, files, full=True))
    if different:
        raise UserError(str(folder), f"not what was recorded: {', '.join(different)}", "make it again")
    return [Upload(file.name, folder / file.name, file.size, file.sha256) for file in files]
