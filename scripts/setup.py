"""python3 -m scripts.setup [--with-quantizers]    make .venv with the pinned packages, unless it is up to date."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

VENV = Path(".venv")
STAMP = VENV / "ropewalk-setup.sha256"
INPUTS = (Path("pyproject.toml"), Path("constraints.txt"), Path(__file__))
OLDEST_PYTHON = (3, 11)
ADVICE = "check the network and the free space, then run the same command again"
# llama.cpp is built from source; its part for pictures is a quarter of the work, and not used here.
BUILD = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"}
MAKE_GPTQMODEL = "from export.quantize.gptqmodel_environment import python_for_gptqmodel; python_for_gptqmodel(print)"


class SetupError(Exception):
    """A step that failed, and why."""


def main(argv: list[str] | None = None) -> int:
    """Run the steps that are needed; this file uses nothing but the standard library."""
    parser = argparse.ArgumentParser(prog="python3 -m scripts.setup", description=__doc__)
    quantizers = "also what makes GPTQ, AWQ and GGUF files (builds llama.cpp: some eight CPU-minutes, once)"
    parser.add_argument("--with-quantizers", action="store_true", help=quantizers)
    arguments = parser.parse_args(argv)
    try:
        setup()
        if arguments.with_quantizers:
            add_quantizers()
        return 0
    except SetupError as error:
        print(f"setup failed: {error}", file=sys.stderr)
        return 1


def setup() -> None:
    """Make the environment, unless it was made from these very inputs."""
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    if sys.version_info < OLDEST_PYTHON:
        found, needed = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON))
        raise SetupError(
            f"Python {found} is too old; run it with Python {needed} or newer (make PYTHON=python{needed})"
        )
    if Path(sys.prefix).resolve() == VENV.resolve():
        raise SetupError(f"{VENV} is out of date, and this is the Python in it: run it with another one (deactivate)")
    step("making .venv", [sys.executable, "-m", "venv", "--clear", str(VENV)], "install the venv module of Python")
    # torch first: with its pin in place, no other package can pull in another build of it.
    step("installing torch", pip("torch"), ADVICE)
    step("installing the other packages", pip(*requirements()), ADVICE)
    STAMP.write_text(wanted)


def add_quantizers() -> None:
    """llama-cpp-python into .venv, and gptqmodel into an environment of its own that sees .venv's packages."""
    python = str(VENV / "bin" / "python")
    pinned = extra("gguf")
    if not all(is_installed(python, requirement) for requirement in pinned):
        step("building llama.cpp (some minutes)", pip(*pinned), f"{ADVICE}; it needs a C++ compiler", BUILD)
    step("gptqmodel's environment", [python, "-c", MAKE_GPTQMODEL], ADVICE)


def is_installed(python: str, requirement: str) -> bool:
    """Whether an environment has exactly the version of a pin such as `llama-cpp-python==0.3.36`."""
    name, _, version = requirement.partition("==")
    asked = [python, "-c", f"import importlib.metadata as m; print(m.version({name!r}))"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.returncode == 0 and found.stdout.strip() == version


def pip(*packages: str) -> list[str]:
    """The command that installs packages at their pinned versions."""
    install = ["install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
    return [str(VENV / "bin" / "python"), "-m", "pip", *install, *packages]


def requirements() -> list[str]:
    """The project's dependencies, what each tracker needs, and the development tools, from pyproject.toml."""
    project = pyproject()
    return project["project"]["dependencies"] + extra("trackers") + project["dependency-groups"]["dev"]


def extra(name: str) -> list[str]:
    """What an optional part of the project needs."""
    return pyproject()["project"]["optional-dependencies"][name]


def pyproject() -> dict:
    """The content of pyproject.toml."""
    import tomllib  # not before the version check: Python 3.10 has none

    return tomllib.loads(Path("pyproject.toml").read_text())


def fingerprint() -> str:
    """Hash of all that decides what is installed."""
    content = b"".join(path.read_bytes() for path in INPUTS) + sys.version.encode()
    return hashlib.sha256(content).hexdigest()


def step(what: str, command: list[str], advice: str, variables: dict[str, str] | None = None) -> None:
    """Run one command quietly; on failure say which step, why, and what to do."""
    print(f"setup: {what} ...", flush=True)
    environment = os.environ | (variables or {})
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        reason = "\n  ".join(errors[-3:]) or f"exit code {result.returncode}"
        raise SetupError(f"{what}: `{' '.join(command[:6])} ...`\n  {reason}\n  -> {advice}")


if __name__ == "__main__":
    raise SystemExit(main())
