"""Files of evaluation texts, as the user gives them for the contamination check."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError

_TODO = "give the path of a .txt file (texts between blank lines) or of a .jsonl file (each string in it is a text)"
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


def read_evaluations(paths: Sequence[Path]) -> list[tuple[str, list[str]]]:
    """The name and the texts of every file, in order.

    A .txt file holds texts between blank lines. In a .jsonl file every string is a text of its own, also in lists and
    objects (a question, each of its choices): what is put between them differs from one prompt to the next.

    Raises:
        UserError: a file is missing, not readable as text or JSON, of another kind, or holds no text.
    """
    return [(str(path), _texts(path)) for path in paths]


def _texts(path: Path) -> list[str]:
    readers = {".txt": _paragraphs, ".jsonl": _strings}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(str(path), f"a file of evaluation texts ending in {path.suffix or 'nothing'!r}", _TODO)
    texts = [text for text in reader(path, _content(path)) if text.strip()]
    if not texts:
        raise UserError(str(path), "no text in it", _TODO)
    return texts


def _content(path: Path) -> str:
    if not path.is_file():
        raise UserError(str(path), "is a directory" if path.is_dir() else "no such file", _TODO)
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        found = f"bytes that are not UTF-8 (at byte {error.start})"
        raise UserError(str(path), found, "save the file as UTF-8") from None
    except PermissionError:
        raise UserError(str(path), "may not be read", "give yourself permission to read it (chmod u+r)") from None


def _paragraphs(path: Path, content: str) -> list[str]:
    return _BLANK_LINES.split(content)


def _strings(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield from _inside(json.loads(line))
        except json.JSONDecodeError as error:
            found = f"broken JSON ({error.msg}, at character {error.pos + 1})"
            raise UserError(f"{path}:{number}", found, "write one JSON value on each line") from None
        except (RecursionError, ValueError):
            raise UserError(f"{path}:{number}", "JSON that cannot be read", "nest it less; shorten numbers") from None


def _inside(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _inside(part)
