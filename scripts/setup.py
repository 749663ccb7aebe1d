"""python3 -m scripts.setup    make .venv with the pinned packages; nothing to do where it is up to date."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

VENV = Path(".venv")
STAMP = VENV / "ropewalk-setup.sha256"
INPUTS = (Path("pyproject.toml"), Path("constraints.txt"), Path(__file__))
OLDEST_PYTHON = (3, 11)


class SetupError(Exception):
    """A step that failed, and why."""


def main() -> int:
    """Run the steps that are needed; this file uses nothing but the standard library."""
    try:
        return setup()
    except SetupError as error:
        print(f"setup failed: {error}", file=sys.stderr)
        return 1


def setup() -> int:
    """Make the environment, unless it was made from these very inputs."""
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return 0
    if sys.version_info < OLDEST_PYTHON:
        found, needed = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON))
        raise SetupError(
            f"Python {found} is too old; run it with Python {needed} or newer (make PYTHON=python{needed})"
        )
    step("making .venv", [sys.executable, "-m", "venv", "--clear", str(VENV)], "install the venv module of Python")
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    advice = "check the network and the free space, then run the same command again"
    # torch first: with its pin in place, no other package can pull in another build of it.
    step("installing torch", [*pip, "-c", "constraints.txt", "torch"], advice)
    step("installing the other packages", [*pip, "-c", "constraints.txt", *requirements()], advice)
    STAMP.write_text(wanted)
    return 0


def requirements() -> list[str]:
    """The project's dependencies and its development tools, from pyproject.toml."""
    import tomllib  # not before the version check: Python 3.10 has none

    project = tomllib.loads(Path("pyproject.toml").read_text())
    return project["project"]["dependencies"] + project["dependency-groups"]["dev"]


def fingerprint() -> str:
    """Hash of all that decides what is installed."""
    content = b"".join(path.read_bytes() for path in INPUTS) + sys.version.encode()
    return hashlib.sha256(content).hexdigest()


def step(what: str, command: list[str], advice: str) -> None:
    """Run one command quietly; on failure say which step, why, and what to do."""
    print(f"setup: {what} ...", flush=True)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        reason = "\n  ".join(errors[-3:]) or f"exit code {result.returncode}"
        raise SetupError(f"{what}: `{' '.join(command[:6])} ...`\n  {reason}\n  -> {advice}")


if __name__ == "__main__":
    raise SystemExit(main())
