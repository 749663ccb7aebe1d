"""manifest.json: every file of a checkpoint with its size and SHA-256, so that damage is found before it is trained on.

It is written last, and has a checksum of its own: whatever bit of a checkpoint flips, it is known where.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.hashing import sha256_of
from train.files import write_whole

NAME = "manifest.json"
FORMAT = 1


def write_manifest(folder: Path, step: int) -> None:
    """Name, measure and hash every file of a checkpoint after `step` finished steps."""
    files = {path.name: _measure(path) for path in sorted(folder.iterdir())}
    content = {"format": FORMAT, "step": step, "files": files}
    write_whole(folder / NAME, json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n")


def faults_of(folder: Path, step: int, needed: tuple[str, ...]) -> list[str]:
    """What is wrong with the checkpoint of a step: which file, and what was found; empty: it is what was written.

    Args:
        needed: files without which nothing can be resumed.

    Raises:
        UserError: it is whole, but of a format that another version of this program writes.
    """
    try:
        content: dict[str, Any] = json.loads((folder / NAME).read_text())
        own = content.pop("sha256")
    except FileNotFoundError:
        return [f"{NAME} is missing"]
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        return [f"{NAME} cannot be read ({error})"]
    if own != _digest(content):
        return [f"{NAME} is not what was written (sha256 {_digest(content)[:12]}, not {str(own)[:12]})"]
    if content["format"] != FORMAT:
        found = f"a checkpoint of format {content['format']}; this version reads format {FORMAT}"
        raise UserError(str(folder), found, "resume with the version that wrote it (environment.json has its commit)")
    if content["step"] != step:
        return [f"{NAME} is that of step {content['step']}"]
    unlisted = [f"{name} is not in {NAME}" for name in needed if name not in content["files"]]
    return unlisted + [fault for name, there in content["files"].items() if (fault := _fault(folder / name, there))]


def _fault(path: Path, written: dict[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != written["bytes"]:
            return f"{path.name} has {size:,} bytes, not {written['bytes']:,}"
        found = _measure(path)["sha256"]
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    if found != written["sha256"]:
        return f"{path.name} is not what was written (sha256 {found[:12]}, not {written['sha256'][:12]})"
    return None


def _measure(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
