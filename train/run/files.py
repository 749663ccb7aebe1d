"""Text files that are whole or not there."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write aside, then rename, so that a kill leaves the old file or the new one."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text)
    aside.rename(path)
