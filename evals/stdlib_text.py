"""The Python standard library's own source: a text corpus that every machine with Python already has.

About 30 MB of real text with long-range structure, nothing to download, no licence to ask for. It is that of the Python
that runs: another version of Python is another corpus, so figures are compared within one machine.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Installed packages and caches differ between machines; `dist-packages` is Debian's name for `site-packages`.
LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class Document:
    """One source file.

    Attributes:
        name: path relative to the standard library, with forward slashes.
        text: the whole file.
    """

    name: str
    text: str


def documents() -> list[Document]:
    """Every Python file of the standard library that is UTF-8 and not empty, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    found = (Document(name, text) for name, path in _sources(root) if (text := _text(path)))
    return sorted(found, key=lambda document: document.name)


def held_out(name: str, fraction: float = 0.05) -> bool:
    """Whether a document is kept out of training: a property of its name, the same in every process and version."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "little") < fraction * 2**64


def _sources(root: Path) -> Iterator[tuple[str, Path]]:
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if not LEFT_OUT & set(relative.parts) and path.is_file():
            yield relative.as_posix(), path


def _text(path: Path) -> str | None:
    """The file's text with its line ends as they are, or None where it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
