"""The environment of gptqmodel, made by itself: .venv-gptqmodel beside .venv, whose packages it sees and adds to.

Apart, because torchao, which gptqmodel needs, warns and costs a second in every process that imports transformers; and
seeing .venv's packages, because the model has to be quantized with the torch and transformers that it was trained with.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from data.errors import UserError

Say = Callable[[str], None]

ROOT = Path(__file__).resolve().parent.parent.parent
REQUIREMENTS = Path(__file__).resolve().parent / "gptqmodel-requirements.txt"
CONSTRAINTS = ROOT / "constraints.txt"
NAME = ".venv-gptqmodel"
_STAMP = "ropewalk-setup.sha256"


def python_for_gptqmodel(say: Say) -> Path:
    """The python of the environment; it is made first where it is missing or was made from something else.

    Raises:
        UserError: it cannot be made, as without a network.
    """
    environment = place()
    if not is_made(environment):
        say(f"making {NAME}, the environment of gptqmodel (once; 100 MB) ...")
        make(environment)
    return _python(environment)


def place() -> Path:
    """Beside the environment that is running, or in the checkout where that is none."""
    beside = Path(sys.prefix).resolve().parent if sys.prefix != sys.base_prefix else ROOT
    return beside / NAME


def is_made(environment: Path) -> bool:
    """Whether it is whole, and made from these requirements for the packages of this very environment."""
    stamp = environment / _STAMP
    return stamp.is_file() and stamp.read_text() == _fingerprint()


def make(environment: Path) -> None:
    """Make it; the stamp is written last, so that one that was interrupted is made again.

    Raises:
        UserError: a step failed.
    """
    _step([sys.executable, "-m", "venv", "--clear", str(environment)])
    python = _python(environment)
    paths = _step([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    (Path(paths.strip()) / "zz_ropewalk.pth").write_text(f"{_packages()}\n")
    # Constraints, not requirements: what .venv already has stays as it is and is not installed a second time.
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    _step([*pip, "-r", str(REQUIREMENTS), "-c", str(CONSTRAINTS)])
    (environment / _STAMP).write_text(_fingerprint())


def _step(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit code {done.returncode}"]
        found = f"gptqmodel's environment cannot be made: {errors[-1]}"
        todo = "check the network and the free space, then run the same command again"
        raise UserError(" ".join(command[1:4]), found, todo)
    return done.stdout


def _fingerprint() -> str:
    content = (REQUIREMENTS.read_text(), CONSTRAINTS.read_text(), _packages(), sys.version)
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def _packages() -> str:
    """Where the running environment keeps its packages."""
    return str(Path(sysconfig.get_path("purelib")).resolve())


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"
