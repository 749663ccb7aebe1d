"""python -I transformers_check.py JOB.json    load a model directory as a stranger does: with transformers alone.

Reports what the loaded model itself says about its rope, vocabulary and control tokens, and what it generates, as one
line of JSON on stdout. Whatever the libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main() -> int:
    """Do the job {path, prompt, stops, max_new_tokens, n_ctx, messages?}; n_ctx is for runtimes that allocate it."""
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(Path(sys.argv[1]).read_text())
    began = time.perf_counter()
    model, tokenizer = load(job["path"])
    loaded = time.perf_counter() - began
    report = {
        "program": "transformers",
        "version": transformers.__version__,
        "rope": rope_of(model),
        "vocab_size": model.get_input_embeddings().weight.shape[0],
        "bos_id": tokenizer.bos_token_id,
        "eos_id": tokenizer.eos_token_id,
        "adds_bos": tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id,
        "chat_template": tokenizer.chat_template is not None,
        "load_seconds": loaded,
        **answer(model, tokenizer, job),
    }
    if job.get("messages"):
        asked = tokenizer.apply_chat_template(job["messages"], add_generation_prompt=True, return_dict=True)
        report["chat_ids"] = asked["input_ids"]
    report["max_rss_bytes"] = max_rss_bytes()
    stdout.write(json.dumps(report) + "\n")
    stdout.close()
    return 0


def load(path: str) -> tuple[Any, Any]:
    """The model as its config.json says, on the GPU where there is one; and its tokenizer."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (
        AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", device_map={"": device}, **options(path, device)
        ).eval(),
        AutoTokenizer.from_pretrained(path),
    )


def options(path: str, device: str) -> dict:
    """The one case that needs an option: the kernel chosen for 4-bit GPTQ on a CPU has no groups as long as a row."""
    settings = getattr(AutoConfig.from_pretrained(path), "quantization_config", None) or {}
    if device == "cpu" and [settings.get(key) for key in ("quant_method", "bits", "group_size")] == ["gptq", 4, -1]:
        return {"quantization_config": transformers.GPTQConfig(bits=4, backend="torch")}
    return {}


def rope_of(model) -> dict:
    """What the live rotary module computes with."""
    rotary = model.get_decoder().rotary_emb
    return {
        "rope_type": rotary.rope_type,
        "inv_freq": rotary.inv_freq.double().tolist(),
        "attention_scaling": float(rotary.attention_scaling),
        "max_position_embeddings": model.config.max_position_embeddings,
    }


@torch.inference_mode()
def answer(model, tokenizer, job: dict) -> dict:
    """Continue the prompt with the likeliest tokens until eos, a text to stop at, or the limit."""
    prompt = tokenizer(job["prompt"])["input_ids"]
    generated, stopped, cache, step = [], "limit", None, prompt
    seconds = []
    while stopped == "limit" and len(generated) < job["max_new_tokens"]:
        began = time.perf_counter()
        output = model(torch.tensor([step], device=model.device), past_key_values=cache, use_cache=True)
        cache, step = output.past_key_values, [int(output.logits[0, -1].argmax())]
        seconds.append(time.perf_counter() - began)
        generated += step
        stopped = stopped_by(model, tokenizer, generated, job["stops"])
    return {
        "prompt_ids": prompt,
        "generated_ids": generated,
        "text": tokenizer.decode(generated, skip_special_tokens=True),
        "stopped": stopped,
        "prompt_tokens_per_second": len(prompt) / seconds[0],
        "tokens_per_second": (len(seconds) - 1) / sum(seconds[1:]) if len(seconds) > 1 else None,
    }


def stopped_by(model, tokenizer, generated: list, stops: list) -> str:
    """`eos`, the text that was reached, or `limit` where there is nothing to stop for."""
    if generated[-1] in end_ids(model, tokenizer):
        return "eos"
    text = tokenizer.decode(generated, skip_special_tokens=True)
    return next((stop for stop in stops if stop in text), "limit")


def end_ids(model, tokenizer) -> set:
    """The ids that `generate` would end with."""
    own = model.generation_config.eos_token_id
    return set(own) if isinstance(own, list) else {tokenizer.eos_token_id if own is None else own}


def max_rss_bytes() -> int:
    """The most memory that was in use. Linux's ru_maxrss may be that of the program that started this one."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    return (peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


if __name__ == "__main__":
    raise SystemExit(main())
