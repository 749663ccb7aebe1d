"""python -I export/gguf/worker.py JOB.json    quantize one GGUF file by llama.cpp, in a process of its own.

llama.cpp ends its process where something is wrong, and says why on the way: its words go to stdout. Nothing of this
project is imported, so the process is small and starts at once. The job: {source, out, type, threads, dry_run,
imatrix: an .npz file or null}. Exit code 1 where llama.cpp refuses.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np


def main() -> int:
    """Do the job whose file is named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    heard = llama_cpp.llama_log_callback(lambda _level, text, _data: print(text.decode(errors="replace"), end=""))
    llama_cpp.llama_log_set(heard, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = _file_type(job["type"])
    settings.nthread, settings.dry_run = job["threads"], job["dry_run"]
    arrays = _arrays(job["imatrix"])  # held until the end: llama.cpp gets pointers into them
    if arrays is not None:
        settings.imatrix = _entries(arrays)
    failed = llama_cpp.llama_model_quantize(job["source"].encode(), job["out"].encode(), ctypes.pointer(settings))
    sys.stdout.flush()
    return 1 if failed else 0


def _file_type(name: str) -> int:
    prefix = "LLAMA_FTYPE_ALL_" if name == "F32" else "LLAMA_FTYPE_MOSTLY_"
    return int(getattr(llama_cpp, prefix + name))


def _arrays(path: str | None) -> dict[str, np.ndarray] | None:
    if path is None:
        return None
    with np.load(path) as arrays:
        return {name: np.ascontiguousarray(arrays[name], np.float32) for name in arrays.files}


def _entries(arrays: dict[str, np.ndarray]) -> Any:
    """The importance matrix as llama.cpp takes it: an array that ends with an entry without a name."""
    entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
    for entry, (name, values) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


if __name__ == "__main__":
    raise SystemExit(main())
