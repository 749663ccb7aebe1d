"""Which weights a run's base model has, so that a later step can tell whether they are still the ones trained on.

A model from the hub is known by its commit, a directory by the SHA-256 of its weight files. Written when a run starts.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, validate_repo_id

from data.errors import UserError
from data.hashing import sha256_of
from train.files import write_whole

FILE_NAME = "base.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_IS_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BaseIdentity:
    """A base model's weights.

    Attributes:
        commit: of the hub's repository; None for a directory.
        files: SHA-256 of each weight file, by name; empty for a model from the hub.
    """

    commit: str | None
    files: dict[str, str]

    def save(self, folder: Path) -> None:
        """Write it into a run directory."""
        write_whole(folder / FILE_NAME, json.dumps(asdict(self), indent=2) + "\n")


def identify(name_or_path: str, revision: str | None) -> BaseIdentity | None:
    """The base as it is on this machine now; None where there is nothing to tell it by."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        found = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
        return BaseIdentity(None, {path.name: _sha256_of(path) for path in found}) if found else None
    cached = try_to_load_from_cache(name_or_path, "config.json", revision=revision)
    return BaseIdentity(Path(cached).parent.name, {}) if isinstance(cached, str) else None


def recorded(run: Path) -> BaseIdentity | None:
    """What `record_base` wrote; None for a run that is older than it.

    Raises:
        UserError: it cannot be read.
    """
    path = run / FILE_NAME
    try:
        return BaseIdentity(**json.loads(path.read_text())) if path.is_file() else None
    except (ValueError, TypeError) as error:
        todo = "remove it; that the base is the one trained on can then no longer be checked"
        raise UserError(str(path), f"cannot be read ({error})", todo) from None


def record_base(run: Path, name_or_path: str, revision: str | None) -> None:
    """Write down the base that a run starts with; a resumed run must have the same.

    Raises:
        UserError: it is another one.
    """
    before, now = recorded(run), identify(name_or_path, revision)
    require_same_base(before, now, name_or_path)
    if before is None and now is not None:
        now.save(run)


def require_same_base(before: BaseIdentity | None, now: BaseIdentity | None, name_or_path: str) -> None:
    """Refuse a base that changed since the run began; what was not recorded cannot be compared.

    Raises:
        UserError: naming what differs.
    """
    if before is None or now is None or before == now:
        return
    todo = "put the base back as it was, or train again on this one"
    if before.commit != now.commit:
        found = f"is at {now.commit or 'no commit'} now, and the run began with {before.commit or 'a directory'}"
        raise UserError(name_or_path, f"not the base that this run began with: it {found}", todo)
    names = sorted(name for name in before.files | now.files if before.files.get(name) != now.files.get(name))
    raise UserError(name_or_path, f"not the weights that this run began with: {', '.join(names)} changed", todo)


def name_to_publish(name_or_path: str) -> str:
    """A base's name without the place where it lies on this machine; its weights are known by their hashes."""
    path = Path(name_or_path).expanduser()
    is_place = path.is_dir() or name_or_path.startswith((".", "/", "~"))
    return path.absolute().name if is_place else name_or_path


def hub_name(name_or_path: str, began_with: BaseIdentity | None) -> str | None:
    """The base's name on the hub; None where it is, or was when the run began, a directory."""
    if Path(name_or_path).expanduser().is_dir() or (began_with is not None and began_with.commit is None):
        return None
    try:
        validate_repo_id(name_or_path)
    except HFValidationError:
        return None
    return name_or_path


def _sha256_of(path: Path) -> str:
    """Hash of a file; a file in a Hugging Face cache is named by it."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and _IS_SHA256.fullmatch(blob.name):
        return blob.name
    stat = path.stat()
    return _hashed(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _hashed(path: Path, _size: int, _mtime: int) -> str:
    """Once in a process as long as the file stays the same: the stages of a run share their base."""
    return sha256_of(path)
