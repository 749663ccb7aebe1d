"""Under which licence a model may be used: as its base says, as the author states, or unknown. Never guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import metadata_load, try_to_load_from_cache

# Of https://huggingface.co/docs/hub/repositories-licenses, those in common use; the hub refuses a card whose `license`
# it does not know, so any other becomes `license: other` with its name.
KNOWN = frozenset({
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0",
    "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "gemma", "gpl", "gpl-2.0", "gpl-3.0",
    "agpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4",
    "mpl-2.0", "odc-by", "unlicense", "wtfpl", "zlib",
})  # fmt: skip
FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")


@dataclass(frozen=True)
class Licence:
    """A licence, and where it was read.

    Attributes:
        name: as the hub spells it, or as its author does; None where it is not known.
        source: who says so, or what is there to read.
    """

    name: str | None
    source: str


def licence_of_base(base: str, given: str | None, *, revision: str | None = None, on_hub: bool = False) -> Licence:
    """The base model's: as given, else as its own card says.

    Args:
        base: a directory or, if `on_hub`, a name there; of that, what the cache has of this revision is read.
    """
    if given:
        return Licence(given, "as stated by the author of this card")
    card = _file(base, "README.md", revision, on_hub)
    name, said = _stated(card) if card else (None, "")
    if name:
        return Licence(name, said)
    for file in FILES:
        path = _file(base, file, revision, on_hub)
        if path:
            first = next((line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()), "")
            return Licence(None, f'its {file} begins "{first[:80]}"')
    where = "what this machine has of its repository" if on_hub else "its directory"
    return Licence(None, f"{where} says nothing about it")


def licence_of_data(given: str | None) -> Licence:
    """The training data's: only its author knows."""
    return Licence(given, "as stated by the author of this card") if given else Licence(None, "nobody stated it")


def hub_fields(base: Licence, data: Licence) -> dict[str, str]:
    """`license` and `license_name` of a card's metadata: none unless both are known, for both bind the model."""
    if not (base.name and data.name):
        return {}
    if base.name == data.name and base.name in KNOWN:
        return {"license": base.name}
    names = [base.name] if base.name == data.name else [base.name, data.name]
    return {"license": "other", "license_name": "-and-".join(_slug(name) for name in names)}


def _file(base: str, name: str, revision: str | None, on_hub: bool) -> Path | None:
    """A file of the base, in its directory or in the hub's cache; None where it is not there."""
    if on_hub:
        cached = try_to_load_from_cache(base, name, revision=revision)
        return Path(cached) if isinstance(cached, str) else None
    path = Path(base).expanduser() / name
    return path if path.is_file() else None


def _stated(card: Path) -> tuple[str | None, str]:
    try:
        metadata = metadata_load(card) or {}
    except (ValueError, OSError, yaml.YAMLError):
        return None, ""
    name = metadata.get("license")
    if name == "other":
        name = metadata.get("license_name")
    return (name if isinstance(name, str) else None), "as its own model card says"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
