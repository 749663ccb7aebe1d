"""python -I vllm_check.py JOB.json    load a directory in vLLM as a stranger would, and say what it reports.

Nothing but Python's own library and vLLM is used. The job: {path, prompt, max_new_tokens, stops, n_ctx}. One JSON
object goes to stdout; where vLLM refuses the directory, its reason to stderr and exit code 3.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

# On a CPU: a cache that fits beside a small model, threads where the system puts them, and everything in one process,
# so that a refusal is an exception here.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def main() -> int:
    """Do the job whose file is named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    stdout = os.dup(1)
    os.dup2(2, 1)  # whatever vLLM prints goes to stderr
    try:
        report = check(job)
    except (ValueError, NotImplementedError) as error:
        print(reason(error), file=sys.stderr)
        return 3
    with os.fdopen(stdout, "w") as out:
        out.write(json.dumps(report) + "\n")
    return 0


def check(job: dict[str, Any]) -> dict[str, Any]:
    """Load, look, tokenize, generate."""
    import vllm  # pyright: ignore[reportMissingImports]

    start = time.perf_counter()
    model = vllm.LLM(job["path"], enforce_eager=True, max_model_len=job["n_ctx"])
    loaded = time.perf_counter() - start
    tokenizer, config = model.get_tokenizer(), model.llm_engine.model_config
    ids = tokenizer(job["prompt"])["input_ids"]
    report = {
        "program": "vLLM",
        "version": vllm.__version__,
        "quantization": config.quantization,
        "rope": {"parameters": dict(config.hf_config.rope_parameters), "max_model_len": config.max_model_len},
        "n_ctx": config.max_model_len,
        "vocab_size": config.hf_config.vocab_size,
        "bos_id": tokenizer.bos_token_id,
        "eos_id": tokenizer.eos_token_id,
        "adds_bos": ids[:1] == [tokenizer.bos_token_id],
        "chat_template": tokenizer.chat_template,
        "prompt_ids": ids,
        "load_seconds": loaded,
    }
    report |= generate(model, vllm.SamplingParams, job)
    return report | {"max_rss_bytes": max_rss_bytes()}


def generate(model: Any, sampling: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The likeliest tokens after the prompt until eos, a stop text or the limit."""
    start = time.perf_counter()
    model.generate([job["prompt"]], sampling(temperature=0.0, max_tokens=1))
    prompt_seconds, start = time.perf_counter() - start, time.perf_counter()
    limit = sampling(temperature=0.0, max_tokens=job["max_new_tokens"], stop=job["stops"])
    done = model.generate([job["prompt"]], limit)[0]
    seconds = time.perf_counter() - start
    said = done.outputs[0]
    stopped = "limit" if said.finish_reason == "length" else said.stop_reason or "eos"
    return {
        "generated_ids": list(said.token_ids),
        "text": said.text,
        "stopped": stopped if isinstance(stopped, str) else "eos",
        "prompt_tokens_per_second": len(done.prompt_token_ids) / prompt_seconds,
        "tokens_per_second": len(said.token_ids) / seconds,
    }


def reason(error: Exception) -> str:
    """The first line of vLLM's own words that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if "validation error" not in line), lines[0] if lines else "no reason given")
    return said.removeprefix("Value error, ").split(" [type=")[0]  # pydantic's own words around vLLM's


def max_rss_bytes() -> int:
    """The most memory that was in use. Linux's ru_maxrss may be that of the program that started this one."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    return (peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


if __name__ == "__main__":
    raise SystemExit(main())
