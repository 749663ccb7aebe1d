"""Prepared tables on disk, each under a hash of all that it depends on; made once, by one process, whole or not at all.

A table is made in a folder beside its place and renamed when it is complete, so what has the right name is whole. A
lock lets one process make it while others that want the same wait and then read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

from data.errors import UserError
from data.prepare.make import DOCUMENTS, REJECTED, Opened, Say, SourceCount, make, open_source
from data.prepare.recipe import RENDERER_VERSION, Recipe, Source
from data.prepare.table import Documents
from data.prepare.work import Job
from data.tokens import Encoder

MANIFEST = "manifest.json"
KEY_LENGTH = 16


@dataclass(frozen=True)
class Prepared:
    """A table of documents and the counts of its making.

    Attributes:
        findings: of all usable records, as `Findings.to_json`.
        folder: where the table is, and rejected.jsonl.
    """

    documents: Documents
    sources: tuple[SourceCount, ...]
    findings: dict[str, Any]
    folder: Path

    @property
    def rejected(self) -> Path:
        """Every record that could not be used, one JSON object a line."""
        return self.folder / REJECTED


@dataclass(frozen=True)
class Sources:
    """The sources of a run, opened and hashed once.

    Attributes:
        hashes: sha256 of each source's files.
        states: size and times of each file when it was hashed.
    """

    opened: tuple[Opened, ...]
    hashes: tuple[tuple[str, ...], ...]
    states: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, sources: Sequence[Source]) -> Sources:
        """Open every source and hash its files.

        Raises:
            UserError: one cannot be read, or two of them hold the same file.
        """
        opened = tuple(open_source(source) for source in sources)
        files = [one for source in opened for one in source.inputs]
        names = [one.name for one in files]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise UserError(twice, "is in two of data.sources", "leave it out of one; to repeat its records: weight: 2")
        states = tuple(one.state() for one in files)
        return cls(opened, tuple(tuple(one.sha256() for one in source.inputs) for source in opened), states)

    @property
    def sha256(self) -> dict[str, str]:
        """The hash of each file, by name."""
        return {
            one.name: sha256
            for source, hashes in zip(self.opened, self.hashes, strict=True)
            for one, sha256 in zip(source.inputs, hashes, strict=True)
        }

    def require_unchanged(self) -> None:
        """What is read must be what was hashed.

        Raises:
            UserError: a file changed since then.
        """
        files = [one for source in self.opened for one in source.inputs]
        for one, state in zip(files, self.states, strict=True):
            if one.state() != state:
                raise UserError(one.name, "changed while this run was using it", "start again, and leave it as it is")


def prepare(sources: Sources, recipe: Recipe, epoch: int, encoder: Encoder, cache: Path, say: Say) -> Prepared:
    """The table of one epoch, from the cache where it is there.

    Raises:
        UserError: a template cannot be applied, a worker process was killed, a file changes meanwhile, or there is no
            place to keep the table.
    """
    key = key_of(sources, recipe, epoch, encoder)
    folder = _folder(cache, key)
    found = _open(folder)
    if found is None:
        with _locked(cache, folder.name, say):
            found = _open(folder)  # another process may have made it meanwhile
            if found is None:
                for line in _why_anew(cache, folder, key):
                    say(line)
                _make(folder, key, sources, Job(recipe, epoch, encoder), say)
                found = _open(folder)
    assert found is not None
    return found


def find(sources: Sources, recipe: Recipe, epoch: int, encoder: Encoder, cache: Path) -> Prepared | None:
    """The table of one epoch where it is in the cache; nothing is made."""
    return _open(_folder(cache, key_of(sources, recipe, epoch, encoder)))


def _folder(cache: Path, key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache / f"documents-{digest[:KEY_LENGTH]}"


@contextmanager
def _locked(cache: Path, name: str, say: Say) -> Iterator[None]:
    """One process of those that see this directory."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("waiting for another process, which prepares the same data ...")
            lock.acquire()
    except OSError as error:
        todo = "make it writable, or give data.cache_dir a directory that is"
        raise UserError(str(cache), f"no place for prepared data ({error.strerror or error})", todo) from None
    try:
        yield
    finally:
        lock.release()


def key_of(sources: Sources, recipe: Recipe, epoch: int, encoder: Encoder) -> dict[str, Any]:
    """Everything that a table depends on, by the name that a user knows it by."""
    drawn = {"train.seed": recipe.seed, "epoch": epoch} if recipe.drawn_anew else {}
    files = [
        {
            "name": opened.source.name,
            "format": opened.source.format,
            "files": dict(zip((one.name for one in opened.inputs), hashes, strict=True)),
        }
        for opened, hashes in zip(sources.opened, sources.hashes, strict=True)
    ]
    return {
        "data.sources": files,
        "the tokenizer": encoder.fingerprint,
        "data.prompt_format": repr(recipe.prompt_format),
        "model.max_length": recipe.max_length,
        "data.on_too_long": recipe.on_too_long,
        "data.short_length": asdict(recipe.window_mix) if recipe.window_mix else None,
        "this program's renderer": RENDERER_VERSION,
        **drawn,
    }


def differences(there: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What changed between two keys, in words."""
    changed: list[str] = []
    for name in wanted | there:
        old, new = there.get(name), wanted.get(name)
        if old == new:
            continue
        if name == "data.sources":
            changed += _files_changed(old, new)
        elif _is_short(old) and _is_short(new):
            changed.append(f"{name}: {old} then, {new} now")
        else:
            changed.append(f"{name} changed")
    return changed


def _is_short(value: Any) -> bool:
    return isinstance(value, int | str) and len(str(value)) < 30


def _files_changed(then: Any, now: Any) -> Iterator[str]:
    old, new = ({source["name"]: source for source in sources or []} for sources in (then, now))
    if old == new:
        yield "the order of data.sources changed"
    for source in old | new:
        there, here = old.get(source), new.get(source)
        if there is None or here is None:
            yield f"{source} is {'new' if there is None else 'no longer a source'}"
            continue
        if there["format"] != here["format"]:
            yield f"{source}: format {there['format']} then, {here['format']} now"
        yield from changed_files(there["files"], here["files"])


def changed_files(then: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    """What became of files, each with its hash, in words."""
    for name in then | now:
        if name not in now:
            yield f"{name} is gone"
        elif name not in then:
            yield f"{name} is new"
        elif then[name] != now[name]:
            yield f"the content of {name} changed"


def _why_anew(cache: Path, folder: Path, key: dict[str, Any]) -> Iterator[str]:
    """What differs from the most similar table that is there; silent where there is none of this epoch."""
    if folder.exists():
        yield "preparing the data anew: what was prepared is damaged, or of another version of this program"
        return
    known = [_read(path) for path in cache.glob(f"documents-*/{MANIFEST}")]
    keys = [other["key"] for other in known if other and isinstance(other.get("key"), dict)]
    of_epoch = [other for other in keys if other.get("epoch", 0) == key.get("epoch", 0)]
    if of_epoch:
        changed = min((differences(other, key) for other in of_epoch), key=len)
        yield f"preparing the data anew: {'; '.join(changed)}"


def _make(folder: Path, key: dict[str, Any], sources: Sources, job: Job, say: Say) -> None:
    # By host and process: on a shared disk without locks, two that make the same must not get into each other's way.
    aside = folder.with_name(f"{folder.name}.{socket.gethostname()}-{os.getpid()}.partial")
    for stale in folder.parent.glob(f"{folder.name}.{socket.gethostname()}-*.partial"):
        shutil.rmtree(stale, ignore_errors=True)  # left by a killed process of this machine
    aside.mkdir(parents=True)
    try:
        sources.require_unchanged()
        made = make(sources.opened, sources.hashes, job, aside, say)
        sources.require_unchanged()
        manifest = {
            "key": key,
            "bytes": (aside / DOCUMENTS).stat().st_size,
            "sources": [asdict(source) for source in made.sources],
            "findings": made.findings.to_json(),
        }
        with (aside / MANIFEST).open("w") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if _open(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _open(folder: Path) -> Prepared | None:
    """A complete table; None where there is none, or where what is there is not what this program writes."""
    manifest = _read(folder / MANIFEST)
    path = folder / DOCUMENTS
    if manifest is None or not path.is_file() or path.stat().st_size != manifest.get("bytes"):
        return None
    try:
        sources = tuple(SourceCount(**source) for source in manifest["sources"])
        files = [file["name"] for source in sources for file in source.files]
        return Prepared(Documents(path, files), sources, manifest["findings"], folder)
    except (KeyError, TypeError, AttributeError, pa.ArrowInvalid):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
