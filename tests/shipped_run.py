"""A finished, merged run of the tiny model, and variants with numbers made up: for the card and for publishing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from conftest import settings

from export.artefact import Artefact, LoadsIn, Loss, folder_of
from export.files import files_of
from export.merge.manifest import read_manifest
from export.merge.ship import merge_run
from train.config import Config
from train.session import run_training

CALIBRATION = {"dataset": "training", "what": "its records", "samples": 8, "sequence_length": 512, "tokens": 4096}
GPTQ_NAME, AWQ_NAME = "gptq-4bit-32g-actorder_True", "awq-4bit-128g"


def shipped_run(tiny_model: Path, records: Path, path: Path) -> Path:
    """Train for a few steps, and merge."""
    run_training(Config.model_validate(settings(tiny_model, records, path)), Accelerator(cpu=True), resume=False)
    merge_run(path, "dequantized", "float16", None, lambda _: None)
    return path


def add_variants(run: Path) -> list[Artefact]:
    """One of each family: within its bound, small, and beyond its bound."""
    gptq_settings = {"bits": 4, "group_size": 32, "desc_act": True, "static_groups": False, "damp_percent": 0.01}
    here = LoadsIn("transformers", True, True, "with gptqmodel installed")
    vllm = LoadsIn("vLLM", False, False, "act-order with groups")
    made = [
        variant(run, GPTQ_NAME, "gptq", gptq_settings, "model.safetensors", 3000, (0.05, 0.091),
                (here, vllm, LoadsIn("ExLlamaV2", True, False))),
        variant(run, AWQ_NAME, "awq", {"bits": 4, "group_size": 128}, "model.safetensors", 2500, (0.004,),
                (LoadsIn("transformers", True, True), LoadsIn("vLLM", True, False))),
        variant(run, "Q4_K_M", "gguf", {"type": "Q4_K_M", "imatrix": None}, "run-Q4_K_M.gguf", 2000, (0.0004,),
                (LoadsIn("llama.cpp", True, True),)),
        variant(run, "Q2_K", "gguf", {"type": "Q2_K", "imatrix": None}, "run-Q2_K.gguf", 1000, (0.41,),
                (LoadsIn("llama.cpp", True, True),)),
    ]  # fmt: skip
    made[2] = replace(made[2], calibration=None)
    for artefact in made:
        artefact.save(run)
    return made


def variant(
    run: Path, name: str, method: str, chosen: dict, file: str, size: int, kls: tuple[float, ...],
    loads_in: tuple[LoadsIn, ...],
) -> Artefact:  # fmt: skip
    """Files of `size` bytes that are not a model, and a record about them."""
    folder = folder_of(run, name, method)
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(name.encode() * (size // len(name)))
    contexts = (128, 512)[-len(kls) :]
    return Artefact(
        name=name,
        method=method,
        settings=chosen,
        calibration=CALIBRATION,
        files=files_of(folder, [folder / file]),
        bits_per_weight=4.85,
        loads_in=loads_in,
        stranger=stranger("llama.cpp" if method == "gguf" else "transformers"),
        losses=tuple(Loss(c, 2048, kl, 0.925, 17.25, 16.5) for c, kl in zip(contexts, kls, strict=True)),
        max_kl=0.1,
        merged_sha256=read_manifest(run / "merged").sha256,
        merge_verified=True,
    )


def stranger(program: str, *, ok: bool = True) -> dict:
    """What a program found that loaded a variant."""
    found = "400" if ok else "401"
    return {
        "program": program, "version": "5.23.0", "ok": ok, "text": "It is 4.", "stopped": "eos", "n_ctx": 512,
        "checks": [
            {"what": "vocabulary", "expected": "400", "found": found, "ok": ok},
            {"what": "eos", "expected": "2", "found": "2", "ok": True},
        ],
        "max_rss_bytes": 321_000_000, "tokens_per_second": 12.5, "prompt_tokens_per_second": 50.0, "load_seconds": 0.7,
    }  # fmt: skip
