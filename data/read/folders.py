"""The data files in a directory or behind a pattern: what is left out is no data, and nothing is lost in silence."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.errors import UserError
from data.read.access import must_be_readable
from data.read.files import KNOWN, kind_of, packed_otherwise

_NAME_THEM = "or name the files that are to be read"


def files_in(place: Path) -> list[Path]:
    """Every data file in a directory and those below it, also behind links; hidden ones are left out.

    Raises:
        UserError: there are none, one may not be read, a link leads nowhere, or a packing is not known.
    """
    found = [file for _, files in _walk(place) for file in files]
    shown = [str(file.relative_to(place)) for file in found]
    _none_is_lost(place, found, shown)
    known = [file for file in found if kind_of(file) is not None]
    if not known:
        held = _listed(shown) if shown else "it is empty"
        raise UserError(str(place), f"a directory without data files ({held})", f"give {KNOWN}")
    return sorted(known)


def files_matching(pattern: Path) -> list[Path]:
    """The data files that a pattern matches; where there are none, whatever it matches.

    Raises:
        UserError: it matches no file, a link leads nowhere, or a packing is not known.
    """
    found = _once(match for match in _matches(pattern) if not match.is_dir())
    if not found:
        todo = "check the pattern; in a directory whose name has [ ] * or ? in it, give the directory itself"
        raise UserError(str(pattern), "no file matches this pattern", todo)
    _none_is_lost(pattern, found, [str(file) for file in found])
    return [file for file in found if kind_of(file) is not None] or found


def _matches(pattern: Path) -> Iterator[Path]:
    """glob's own `**` goes round and round where links lead back."""
    parts = pattern.parts
    if "**" not in parts:
        # pathlib's own glob takes hidden files too.
        yield from map(Path, glob.glob(str(pattern)))  # noqa: PTH207
        return
    at = parts.index("**")
    for base in _matches(Path(*parts[:at])):
        for folder, _ in _walk(base) if base.is_dir() else ():
            yield from _matches(Path(glob.escape(str(folder)), *(parts[at + 1 :] or ("*",))))


def _walk(place: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Each directory from here on, also behind links, once, with all in it that is none; hidden ones are left out."""
    must_be_readable(place)
    seen = {place.resolve()}
    for folder, names, files in os.walk(place, followlinks=True, onerror=_raised):
        inside = [Path(folder, name) for name in names if not name.startswith(".")]
        names.clear()
        # A directory itself goes before a link to it.
        for one in sorted(inside, key=lambda one: (one.is_symlink(), one)):
            must_be_readable(one)
            if one.resolve() not in seen:
                seen.add(one.resolve())
                names.append(one.name)
        yield Path(folder), [Path(folder, name) for name in files if not name.startswith(".")]


def _raised(error: OSError) -> None:
    """os.walk passes over a directory that cannot be listed, if it is let."""
    raise error


def _once(files: Iterable[Path]) -> list[Path]:
    """What is behind a link may match by two names: each file by its shortest name, in the order of the names."""
    once: dict[Path, Path] = {}
    for file in sorted(files, key=lambda file: (len(file.parts), file)):
        once.setdefault(file.parent.resolve() / file.name, file)
    return sorted(once.values())


def _none_is_lost(where: Path, files: list[Path], names: list[str]) -> None:
    """What would be data if it could be read is not left out like a README."""
    named = list(zip(files, names, strict=True))
    broken = [name for file, name in named if _leads_nowhere(file)]
    if broken:
        raise UserError(
            str(where), f"links that lead nowhere ({_listed(broken)})", f"mend or remove them, {_NAME_THEM}"
        )
    packed = [name for file, name in named if packed_otherwise(file)]
    if packed:
        found = f"data packed in a way that is not read ({_listed(packed)})"
        raise UserError(str(where), found, f"pack it with gzip (.gz) or zstandard (.zst), {_NAME_THEM}")


def _leads_nowhere(file: Path) -> bool:
    """Whether it is a broken link to data: by its name, or to what may have been a directory."""
    data = kind_of(file) is not None or packed_otherwise(file) or not file.suffix
    return data and file.is_symlink() and not file.exists()


def _listed(names: list[str], most: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
