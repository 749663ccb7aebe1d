"""llama.cpp's own converter, as released inside the source of llama-cpp-python; fetched once into `.cache/`.

The converter and the packages beside it change with llama.cpp, and the index has no release that fits. So they are
taken from the source distribution of the very llama-cpp-python that quantizes and loads the files, by its hash.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from data.errors import UserError

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
FOLDER = Path(__file__).parent.parent.parent / ".cache" / f"llama.cpp-{VERSION}"
SCRIPT = "convert_hf_to_gguf.py"
GGUF_PY = "gguf-py"
# What the converter needs of the 6,000 files.
WANTED = (SCRIPT, "conversion/", f"{GGUF_PY}/")

Say = Callable[[str], None]


def converter(say: Say, folder: Path = FOLDER) -> Path:
    """The path of `convert_hf_to_gguf.py`, with `conversion/` and `gguf-py/` beside it.

    Raises:
        UserError: it is not there, and cannot be fetched.
    """
    if not (folder / SCRIPT).is_file():
        say(f"fetching llama.cpp's converter (the source of llama-cpp-python {VERSION}, 77 MB, once) ...")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            unpacked = unpack(_download(Path(aside)), Path(aside) / "unpacked")
            shutil.rmtree(folder, ignore_errors=True)
            unpacked.rename(folder)
    return folder / SCRIPT


def unpack(archive: Path, folder: Path) -> Path:
    """The converter's files of a source distribution, in `folder`."""
    root = f"{archive.name.removesuffix('.tar.gz')}/vendor/llama.cpp/"
    with tarfile.open(archive) as files:
        for member in files:
            name = member.name.removeprefix(root)
            if name != member.name and name.startswith(WANTED):
                files.extract(member.replace(name=name, deep=False), folder, filter="data")
    return folder


def _download(folder: Path) -> Path:
    """The source distribution: from wherever this machine's pip finds packages, and only with the right hash."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    choice = ["--no-binary", "llama-cpp-python", "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    done = subprocess.run([*pip, *choice], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        found = f"pip cannot fetch the source of llama-cpp-python {VERSION}: {(errors or ['no reason given'])[-1]}"
        todo = "connect this machine to a package index once; the converter is then kept in .cache/"
        raise UserError("llama.cpp's converter", found, todo)
    return next(folder.glob("llama_cpp_python-*.tar.gz"))
