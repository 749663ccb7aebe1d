"""A separate process with none of our code loads an artefact in its stock runtime; here its answers are judged.

The runtime reports what it sees (strangers/*.py): rope, vocabulary, control tokens, the ids of a training prompt, and
what it generates. What must hold is known from the run. A variant that fails a check is not published as a variant.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.conversation import Conversation
from data.errors import UserError
from data.prepare.make import conversations
from data.render import Style, draws, render
from data.tokens import Encoder
from export.merge.model import MergedModel
from export.merge.weights import EMBEDDING
from train.recipe import prompt_format_of, sources_of
from train.rope.spec import RopeSpec
from train.rope.spelling import gguf_keys, rope_freqs, rope_parameters, written_theta, written_window

SCRIPTS = Path(__file__).parent / "strangers"
STOPS = ("USER:",)
NEW_TOKENS = 200
REFUSED = 3  # exit code of a stranger whose runtime says that it does not take such a model
TOLERANCE = 1e-5  # relative, of a frequency or a factor


@dataclass(frozen=True)
class Check:
    """One thing that was compared; `must` where a difference means that the artefact is wrong."""

    what: str
    expected: str
    found: str
    ok: bool
    must: bool = True


@dataclass(frozen=True)
class Expected:
    """What a runtime has to see.

    Attributes:
        vocab_size: rows of the merged model's embedding.
        prompt: a rendered training prompt, as text; prompt_ids: its ids as they were trained, bos included.
    """

    spec: RopeSpec
    vocab_size: int
    bos_ids: list[int]
    eos_id: int
    prompt: str
    prompt_ids: list[int]


def training_prompt(
    records: Iterable[Conversation], encoder: Encoder, prompt_format: Style, seed: int
) -> tuple[str, list[int]]:
    """The first record's prompt as epoch 0 rendered it, without its trailing space, and the ids that were trained.

    Where a style writes control tokens within its prompts it is the longest text between two of them: runtimes differ
    in how they are asked to take control tokens out of a text, and what is compared here is how they take text.

    Raises:
        UserError: no record has a prompt.
    """
    for conversation in records:
        spans = render(conversation, prompt_format, draws(seed, 0, conversation.key))
        answer = next(index for index, span in enumerate(spans) if span.trained)
        texts = [index for index in range(answer) if not spans[index].control]
        if not texts:
            continue
        asked = max(texts, key=lambda index: len(spans[index].text))
        text, begin = spans[asked].text.rstrip(" "), len(encoder.encode(spans[:asked]))
        trained, ids = encoder.encode(spans).ids[begin:].tolist(), encoder.text_ids(text)
        if trained[: len(ids)] == ids:
            return text, encoder.bos_ids + ids
    todo = "train on at least one instruction: exports are checked with its prompt"
    raise UserError("data.sources", "no record with a prompt", todo)


class NotLoadedError(UserError):
    """A runtime did not load an artefact.

    Attributes:
        reason: its own words; refused: whether these are that it does not take such a one.
    """

    def __init__(self, artefact: Path, program: str, reason: str, *, refused: bool) -> None:
        super().__init__(str(artefact), f"{program} does not load it: {reason}", "make it again")
        self.reason, self.refused = reason, refused


def expected_of(merged: MergedModel) -> Expected:
    """What a runtime has to see in a merged model, and in whatever is made from it.

    Raises:
        UserError: the training records are no longer there, or none of them has a prompt.
    """
    records = conversations(sources_of(merged.config.data))
    prompt_format, seed = prompt_format_of(merged.config.data, merged.encoder.tokenizer), merged.config.train.seed
    prompt, ids = training_prompt(records, merged.encoder, prompt_format, seed)
    rows = merged.shapes[EMBEDDING][0]
    return Expected(merged.spec, rows, merged.encoder.bos_ids, merged.encoder.eos_id, prompt, ids)


def ask(script: str, python: Path, artefact: Path, expected: Expected) -> dict[str, Any]:
    """Let a stranger load an artefact, and return what it reports.

    Raises:
        NotLoadedError: the runtime does not load it.
    """
    job = {"path": str(artefact.absolute()), "prompt": expected.prompt, "stops": list(STOPS)}
    job |= {"max_new_tokens": NEW_TOKENS, "n_ctx": expected.spec.max_position_embeddings}
    with tempfile.TemporaryDirectory() as elsewhere:
        path = Path(elsewhere) / "job.json"
        path.write_text(json.dumps(job))
        # -I: neither this checkout nor the user's PYTHONPATH can be imported from there.
        command = [str(python), "-I", str((SCRIPTS / script).absolute()), str(path)]
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False, env=_environment())
    if done.returncode or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        program = script.removesuffix("_check.py")
        raise NotLoadedError(artefact, program, last, refused=done.returncode == REFUSED)
    return json.loads(done.stdout.strip().splitlines()[-1])


def judged(report: dict[str, Any], expected: Expected, merged: dict[str, Any] | None) -> dict[str, Any]:
    """The checks, whether all that must hold does, and the runtime's own figures, ready for the record.

    Args:
        merged: the stranger's report about the merged model itself, to compare the end of the answer with.
    """
    checks = list(_checks(report, expected, merged))
    kept = ("program", "version", "text", "stopped", "max_rss_bytes", "load_seconds")
    speed = ("tokens_per_second", "prompt_tokens_per_second")
    # transformers makes its cache as it goes, llama.cpp at once and for the whole context.
    used = len(report["prompt_ids"]) + len(report["generated_ids"])
    own = {"n_ctx": report["n_ctx"] if "rope_freqs" in report["rope"] else used}
    ok = all(check.ok for check in checks if check.must)
    figures = {key: report.get(key) for key in kept + speed} | own
    return {"ok": ok, "checks": [asdict(check) for check in checks], **figures}


def _checks(report: dict[str, Any], expected: Expected, merged: dict[str, Any] | None) -> Iterator[Check]:
    yield from rope_checks(report, expected.spec)
    yield _equal("vocabulary", expected.vocab_size, report["vocab_size"])
    yield _equal("eos", expected.eos_id, report["eos_id"])
    if expected.bos_ids:
        yield _equal("bos", expected.bos_ids[0], report["bos_id"])
    yield _equal("adds bos by itself", bool(expected.bos_ids), bool(report["adds_bos"]))
    same = report["prompt_ids"] == expected.prompt_ids
    found = "the same ids" if same else _first_difference(expected.prompt_ids, report["prompt_ids"])
    yield Check("a training prompt's ids", f"the {len(expected.prompt_ids)} trained ids", found, same)
    yield _equal("chat template", True, bool(report["chat_template"]))
    ends = merged["stopped"] if merged else "eos"
    yield Check("its answer ends", ends, report["stopped"], report["stopped"] != "limit" or ends == "limit", must=False)


def rope_checks(report: dict[str, Any], spec: RopeSpec) -> Iterator[Check]:
    """The rope that the runtime reports against the one that was trained."""
    rope = report["rope"]
    if "inv_freq" in rope:
        yield from _transformers_rope(rope, spec)
    elif "parameters" in rope:
        yield from _vllm_rope(rope, spec)
    else:
        yield from _llama_cpp_rope(rope, spec)


def _transformers_rope(rope: dict[str, Any], spec: RopeSpec) -> Iterator[Check]:
    # A module of transformers that looks at the row's length starts out with that of a short row.
    wanted = spec.inv_freq(spec.original_max_position_embeddings - 1 if spec.looks_at_length else None).numpy()
    live = np.asarray(rope["inv_freq"], dtype=np.float64)
    error = float(np.abs(live / wanted - 1.0).max()) if live.shape == wanted.shape else float("inf")
    name = f"rope frequencies ({spec.rope_type}, factor {spec.factor:g})"
    yield Check(name, f"the closed form's {len(wanted)}", f"off by {error:.1e} (relative)", error <= TOLERANCE)
    yield _close("rope attention factor", spec.attention_scaling(), rope["attention_scaling"])
    yield _equal("context window", written_window(spec), rope["max_position_embeddings"])


def _vllm_rope(rope: dict[str, Any], spec: RopeSpec) -> Iterator[Check]:
    wanted = rope_parameters(spec)
    found = {key: rope["parameters"].get(key) for key in wanted}
    yield _equal("rope parameters", wanted, found)
    yield _equal("context window", spec.max_position_embeddings, rope["max_model_len"])


def _llama_cpp_rope(rope: dict[str, Any], spec: RopeSpec) -> Iterator[Check]:
    keys = gguf_keys(spec)
    yield _close("rope theta", written_theta(spec), rope["freq_base"])
    yield _close("rope frequency scale", 1.0 / keys.get("llama.rope.scaling.factor", 1.0), rope["freq_scale"])
    yield _equal("rope scaling type", keys.get("llama.rope.scaling.type", "linear"), rope["scaling_type"])
    yield _equal("context window", keys["llama.context_length"], rope["context_length"])
    yield _close("rope attention factor key", keys.get("llama.rope.scaling.attn_factor", 1.0), rope["attn_factor"])
    factors = rope_freqs(spec)
    if factors is None:
        yield _equal("rope factors in a tensor", None, rope["rope_freqs"])
        return
    live = np.asarray(rope["rope_freqs"] or [], dtype=np.float32)
    same = live.shape == factors.shape and bool(np.allclose(live, factors, rtol=TOLERANCE, atol=0.0))
    yield Check("rope factors in a tensor", f"the {len(factors)} of the closed form", f"{len(live)} factors", same)


def _equal(what: str, expected: Any, found: Any) -> Check:
    return Check(what, str(expected), str(found), expected == found)


def _close(what: str, expected: float, found: float | None) -> Check:
    ok = found is not None and abs(found / expected - 1.0) <= TOLERANCE
    return Check(what, f"{expected:g}", "nothing" if found is None else f"{found:g}", ok)


def _first_difference(expected: list[int], found: list[int]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(expected))
    return f"{len(found)} ids, the first difference at {place}"


def _environment() -> dict[str, str]:
    """The user's, without what would let Python find this checkout; no hub is asked for what lies on the disk."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"HF_HUB_OFFLINE": "1"}
