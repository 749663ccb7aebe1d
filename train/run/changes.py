"""What differs between two starts of a run: on what it ran, its data, its tokenizer and its base. Pure; in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from data.prepare.cache import changed_files

# What is not said of an environment: a machine's cores (threads are), and the launches after the first one.
_NOT_COMPARED = ("cpu_count", "settings", "resumed", "variables")
# Variables whose effect is recorded itself.
_IN_OTHER_WORDS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_NAMES = {
    "python": "Python",
    "git_commit": "the git commit",
    "source": "the code of data/ and train/",
    "cpu": "the CPU",
    "device": "the device",
    "cpu_threads": "the number of CPU threads",
    "topology": "the processes",
    "init_from": "the adapter that it started from (lora.init_from)",
}


def environment_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two `environment`s; what the first did not record is not compared."""
    for key, old in then.items():
        if key not in _NOT_COMPARED and old != now.get(key):
            yield _change(_NAMES.get(key, key), old, now.get(key))
    if "variables" in then:
        old, new = then["variables"], now.get("variables", {})
        for name in sorted(old.keys() | new.keys()):
            if name not in _IN_OTHER_WORDS and old.get(name) != new.get(name):
                yield _change(f"the variable {name}", old.get(name), new.get(name))


def data_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two data.json: files by name, the tokenizer, the renderer."""
    yield from changed_files(files_of(then), files_of(now))
    yield from encoding_changes(then, now.get("encoding", {}))


def encoding_changes(then: Mapping[str, Any], encoding: Mapping[str, Any]) -> Iterator[str]:
    """Of what else decides the ids (`Dataset.encoding`), what is not as in a data.json."""
    before = then.get("encoding", {})
    for what, value in encoding.items():
        if before.get(what) != value:
            yield f"{what} changed"


def base_changes(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> Iterator[str]:
    """What differs between two base.json; nothing where one of them could not be told."""
    if then is None or now is None:
        return
    if then["commit"] != now["commit"]:
        yield _change("the base's commit", then["commit"], now["commit"])
    yield from (f"of the base: {change}" for change in changed_files(then["files"], now["files"]))


def files_of(data: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of each data file, by name, as a data.json has it."""
    return {file["name"]: file["sha256"] for source in data["sources"] for file in source["files"]}


def _change(name: str, then: Any, now: Any) -> str:
    old, new = ("not there" if value is None else str(value) for value in (then, now))
    long = max(len(old), len(new)) > 60
    return f"{name} changed" if long else f"{name}: {old} then, {new} now"
