"""python -I llama_cpp_check.py JOB.json    load a GGUF file in llama.cpp as a stranger would, and say what it reports.

Nothing but Python's own library, numpy and llama-cpp-python is used. The job: {path, prompt, max_new_tokens, stops,
n_ctx, messages?}. One JSON object goes to stdout; where the file does not load, a message to stderr and exit code 1.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import struct
import sys
import time
from pathlib import Path
from typing import Any

# Threads that wait do not spin: on a busy machine that costs more than the work itself. Read when the library loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np

BATCH = 512  # tokens decoded at a time
ROPE_FREQS = b"rope_freqs.weight"

LOG: list[str] = []


@llama_cpp.llama_log_callback
def heard(_level: int, text: bytes, _data: Any) -> None:
    """Keep what llama.cpp says: some of what it makes of a file it says nowhere else."""
    LOG.append(text.decode(errors="replace"))


class LoadError(Exception):
    """The file is not one that llama.cpp takes."""


def main() -> int:
    """Do the job whose file is named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    llama_cpp.llama_log_set(heard, ctypes.c_void_p(0))
    try:
        report = check(job)
    except LoadError as error:
        errors = [line for line in "".join(LOG).splitlines() if "error" in line.lower() or "failed" in line.lower()]
        print(f"{job['path']}: {error}: {(errors or ['no reason given'])[0]}", file=sys.stderr)
        return 1
    print(json.dumps(report))
    return 0


def check(job: dict[str, Any]) -> dict[str, Any]:
    """Load, look, tokenize, generate."""
    start = time.perf_counter()
    model, context = load(job["path"], job["n_ctx"])
    loaded = time.perf_counter() - start
    vocab: Any = llama_cpp.llama_model_get_vocab(model)
    ids = tokenize(vocab, job["prompt"], parse_special=False)
    template = llama_cpp.llama_model_chat_template(model, None)
    report = {
        "program": "llama.cpp",
        "version": f"llama-cpp-python {llama_cpp.__version__}",
        "rope": rope_of(model, job["path"]),
        "n_ctx": int(llama_cpp.llama_n_ctx(context)),
        "without_amx": has_amx(),
        "vocab_size": int(llama_cpp.llama_vocab_n_tokens(vocab)),
        "bos_id": int(llama_cpp.llama_vocab_bos(vocab)),
        "eos_id": int(llama_cpp.llama_vocab_eos(vocab)),
        "adds_bos": bool(llama_cpp.llama_vocab_get_add_bos(vocab)),
        "chat_template": template.decode() if template else None,
        "prompt_ids": ids,
        "load_seconds": loaded,
    }
    if job.get("messages"):
        report |= chat(vocab, report["chat_template"], job["messages"], report["bos_id"], report["eos_id"])
    report |= generate(context, vocab, ids, job["max_new_tokens"], job["stops"])
    return report | {"max_rss_bytes": max_rss_bytes()}


def max_rss_bytes() -> int:
    """The most memory that was in use. Linux's ru_maxrss may be that of the program that started this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def load(path: str, n_ctx: int) -> tuple[Any, Any]:
    """The model and a context of `n_ctx` tokens, everything else but AMX as llama.cpp chooses.

    Raises:
        LoadError: llama.cpp refuses the file, or its cache does not fit in memory.
    """
    llama_cpp.llama_backend_init()
    choices = llama_cpp.llama_model_default_params()
    choices.use_extra_bufts = not has_amx()
    model = llama_cpp.llama_model_load_from_file(path.encode(), choices)
    if not model:
        raise LoadError("llama.cpp does not load it")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch = n_ctx, BATCH
    settings.n_threads = settings.n_threads_batch = threads()
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        raise LoadError(f"llama.cpp makes no context of {n_ctx} tokens")
    return model, context


def has_amx() -> bool:
    """Whether llama.cpp would use AMX: compiled by some versions of GCC, its first multiplication of a quantized matrix
    ends the process (ggml-org/llama.cpp issue 20824, pull request 26954), whatever the file."""
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()


def threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rope_of(model: Any, path: str) -> dict[str, Any]:
    """What llama.cpp made of the file's rope, and the file's own keys about it."""
    factors = rope_factors(path)
    return {
        "scaling_type": logged("rope scaling"),
        "freq_base": float(logged("freq_base_train") or "nan"),
        "freq_scale": float(llama_cpp.llama_model_rope_freq_scale_train(model)),
        "context_length": int(llama_cpp.llama_model_n_ctx_train(model)),
        "original_context_length": int(logged("n_ctx_orig_yarn") or 0),
        "attn_factor": float(metadata(model).get("llama.rope.scaling.attn_factor", 1.0)),
        "has_rope_freqs": factors is not None,
        "rope_freqs": factors,
        "metadata": {key: value for key, value in metadata(model).items() if ".rope." in key or "context" in key},
    }


def logged(name: str) -> str | None:
    """A value that llama.cpp printed about the model when it loaded."""
    found = re.search(rf"print_info: {re.escape(name)} += (\S+)", "".join(LOG))
    return found[1] if found else None


def metadata(model: Any) -> dict[str, str]:
    """The keys of the file, as text."""
    found: dict[str, str] = {}
    for index in range(llama_cpp.llama_model_meta_count(model)):
        key, value = ctypes.create_string_buffer(256), ctypes.create_string_buffer(65536)
        llama_cpp.llama_model_meta_key_by_index(model, index, key, len(key))
        llama_cpp.llama_model_meta_val_str_by_index(model, index, value, len(value))
        found[key.value.decode()] = value.value.decode(errors="replace")
    return found


class InitParams(ctypes.Structure):
    """gguf_init_params of ggml's gguf.h: read the description of the tensors only."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def parts(path: str) -> list[str]:
    """The files of a model that is split, of which `path` is the first; itself alone where it is not."""
    named = re.search(r"-00001-of-(\d{5})\.gguf$", path)
    if not named:
        return [path]
    return [f"{path[: named.start()]}-{number:05d}-of-{named[1]}.gguf" for number in range(1, int(named[1]) + 1)]


def rope_factors(path: str) -> list[float] | None:
    """The rope_freqs tensor, in whichever part it is, by ggml's own reader; None where there is none."""
    return next((factors for part in parts(path) if (factors := factors_in(part)) is not None), None)


def factors_in(path: str) -> list[float] | None:
    """The rope_freqs tensor of one file."""
    lib = llama_cpp.llama_cpp._lib
    for name, result in (("init_from_file", ctypes.c_void_p), ("find_tensor", ctypes.c_int64)):
        getattr(lib, f"gguf_{name}").restype = result
    for name in ("get_data_offset", "get_tensor_offset", "get_tensor_size"):
        getattr(lib, f"gguf_{name}").restype = ctypes.c_size_t
    lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
    file = ctypes.c_void_p(lib.gguf_init_from_file(path.encode(), InitParams(True, None)))
    index = ctypes.c_int64(lib.gguf_find_tensor(file, ROPE_FREQS))
    if index.value < 0:
        return None
    with Path(path).open("rb") as raw:
        raw.seek(lib.gguf_get_data_offset(file) + lib.gguf_get_tensor_offset(file, index))
        return [factor for (factor,) in struct.iter_unpack("<f", raw.read(lib.gguf_get_tensor_size(file, index)))]


def tokenize(vocab: Any, text: str, *, parse_special: bool) -> list[int]:
    """Ids with what the file says belongs in front; control tokens are read in the text only with parse_special."""
    raw = text.encode()
    room = len(raw) + 8
    ids = (llama_cpp.llama_token * room)()
    count = llama_cpp.llama_tokenize(vocab, raw, len(raw), ids, room, True, parse_special)
    return list(ids[:count])


def piece(vocab: Any, token: int) -> bytes:
    """The bytes of one token; control tokens have none."""
    buffer = ctypes.create_string_buffer(512)
    count = llama_cpp.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, False)
    return buffer.raw[: max(count, 0)]


def chat(vocab: Any, template: str | None, messages: list[dict[str, str]], bos_id: int, eos_id: int) -> dict[str, Any]:
    """The messages as the file's own chat template writes them, and their ids."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # pyright: ignore[reportMissingImports]

    if template is None:
        return {"chat_prompt": None, "chat_prompt_ids": None}
    special = [llama_cpp.llama_vocab_get_text(vocab, token) for token in (bos_id, eos_id)]
    bos, eos = (text.decode() if text else "" for text in special)
    made = Jinja2ChatFormatter(template, eos, bos)(messages=messages)  # pyright: ignore[reportArgumentType]
    ids = tokenize(vocab, made.prompt.removeprefix(bos or "\0"), parse_special=True)
    return {"chat_prompt": made.prompt, "chat_prompt_ids": ids}


def generate(context: Any, vocab: Any, ids: list[int], limit: int, stops: list[str]) -> dict[str, Any]:
    """The likeliest tokens after the prompt, one by one, until eos, a stop text or the limit."""
    start = time.perf_counter()
    token = decode(context, vocab, ids)
    prompt_seconds, start = time.perf_counter() - start, time.perf_counter()
    eos, new, text, stopped = int(llama_cpp.llama_vocab_eos(vocab)), [], b"", "limit"
    while len(new) < limit:
        new.append(token)
        text += piece(vocab, token)
        stop = next((stop for stop in stops if stop.encode() in text), None)
        if token == eos or stop:
            stopped = "eos" if token == eos else str(stop)
            break
        if len(ids) + len(new) >= llama_cpp.llama_n_ctx(context):
            break
        token = decode(context, vocab, [token])
    seconds = time.perf_counter() - start
    return {
        "generated_ids": new,
        "text": text.decode(errors="replace"),
        "stopped": stopped,
        "prompt_tokens_per_second": len(ids) / prompt_seconds,
        "tokens_per_second": max(len(new) - 1, 0) / seconds,
    }


def decode(context: Any, vocab: Any, ids: list[int]) -> int:
    """Feed tokens after those that were fed before; the likeliest next one.

    Raises:
        LoadError: llama.cpp fails to compute.
    """
    for start in range(0, len(ids), BATCH):
        part = ids[start : start + BATCH]
        tokens = (llama_cpp.llama_token * len(part))(*part)  # named, so that it lives while the batch points to it
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(part))):
            raise LoadError(f"llama.cpp cannot decode {len(ids)} tokens")
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    return int(np.ctypeslib.as_array(logits, (llama_cpp.llama_vocab_n_tokens(vocab),)).argmax())


if __name__ == "__main__":
    raise SystemExit(main())
