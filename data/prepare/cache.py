"""Prepared tables on disk, each under a hash of all that it depends on; made once, by one process, whole or not at all.

A table is made in a folder beside its place and renamed when it is complete, so what has the right name is whole. A
lock lets one process make it while others that want the same wait and then read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

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
    """The sources of a run, opened and hashed once."""

    opened: tuple[Opened, ...]
    hashes: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, sources: Sequence[Source]) -> Sources:
        """Open every source and hash its files.

        Raises:
            UserError: one cannot be read.
        """
        opened = tuple(open_source(source) for source in sources)
        return cls(opened, tuple(tuple(one.sha256() for one in source.inputs) for source in opened))

    @property
    def sha256(self) -> dict[str, str]:
        """The hash of each file, by name."""
        return {
            one.name: sha256
            for source, hashes in zip(self.opened, self.hashes, strict=True)
            for one, sha256 in zip(source.inputs, hashes, strict=True)
        }


def prepare(sources: Sources, recipe: Recipe, epoch: int, encoder: Encoder, cache: Path, say: Say) -> Prepared:
    """The table of one epoch, from the cache where it is there.

    Raises:
        UserError: a template cannot be applied, or a worker process was killed.
    """
    key = key_of(sources, recipe, epoch, encoder)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]
    folder = cache / f"documents-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{folder.name}.lock"):
        found = _open(folder)
        if found is None:
            for line in _why_anew(cache, key):
                say(line)
            _make(folder, key, sources, Job(recipe, epoch, encoder), say)
            found = _open(folder)
    assert found is not None
    return found


def key_of(sources: Sources, recipe: Recipe, epoch: int, encoder: Encoder) -> dict[str, Any]:
    """Everything that a table depends on, by the name that a user knows it by."""
    drawn = {"train.seed": recipe.seed, "epoch": epoch} if recipe.drawn_anew else {}
    files = {
        opened.source.name: {
            "format": opened.source.format,
            "files": dict(zip((one.name for one in opened.inputs), hashes, strict=True)),
        }
        for opened, hashes in zip(sources.opened, sources.hashes, strict=True)
    }
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
        elif isinstance(old, int | str) and isinstance(new, int | str) and len(f"{old}{new}") < 60:
            changed.append(f"{name}: {old} then, {new} now")
        else:
            changed.append(f"{name} changed")
    return changed


def _files_changed(old: Any, new: Any) -> Iterator[str]:
    for source in old | new:
        there, here = old.get(source), new.get(source)
        if there is None or here is None:
            yield f"{source} is {'new' if there is None else 'no longer a source'}"
            continue
        if there["format"] != here["format"]:
            yield f"{source}: format {there['format']} then, {here['format']} now"
        for name in there["files"] | here["files"]:
            if there["files"].get(name) != here["files"].get(name):
                yield f"the content of {name} changed" if name in there["files"] else f"{name} is new"


def _why_anew(cache: Path, key: dict[str, Any]) -> Iterator[str]:
    """What differs from the most similar table that is there; silent where there is none of this epoch."""
    known = [_read(path) for path in cache.glob(f"documents-*/{MANIFEST}")]
    of_epoch = [other["key"] for other in known if other and other["key"].get("epoch", 0) == key.get("epoch", 0)]
    if of_epoch:
        changed = min((differences(other, key) for other in of_epoch), key=len)
        yield f"preparing the data anew: {'; '.join(changed)}"


def _make(folder: Path, key: dict[str, Any], sources: Sources, job: Job, say: Say) -> None:
    aside = folder.with_name(f"{folder.name}.partial")
    for stale in (aside, folder):  # left by a killed process; or damaged, or `_open` had taken it
        shutil.rmtree(stale, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        made = make(sources.opened, sources.hashes, job, aside, say)
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
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _open(folder: Path) -> Prepared | None:
    """A complete table; None where there is none, or where what is there is not what was written."""
    manifest = _read(folder / MANIFEST)
    path = folder / DOCUMENTS
    if manifest is None or not path.is_file() or path.stat().st_size != manifest["bytes"]:
        return None
    sources = tuple(SourceCount(**source) for source in manifest["sources"])
    files = [file["name"] for source in sources for file in source.files]
    return Prepared(Documents(path, files), sources, manifest["findings"], folder)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
