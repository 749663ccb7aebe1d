"""What quantization cost is measured on the right tokens, by both kinds of runtime."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from data.errors import UserError
from evals.divergence import Predictions, StreamedLogits, compare
from export.proof.loss import LossJob, contexts_of, cut, do, predicted, read_job, read_reference


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randint(3, 300, (2, 96), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def worse(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with one layer rounded coarsely."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "worse"))
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = (weights[name].float() / 0.1).round().mul(0.1).to(weights[name].dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_worker_measures_what_a_plain_forward_pass_says(
    tiny_model: Path, worse: Path, rows: torch.Tensor, tmp_path: Path
) -> None:
    contexts, targets = (48, 96), 16
    save_file({"rows": rows}, tmp_path / "rows.safetensors")
    job = LossJob(
        str(tiny_model), str(tmp_path / "rows.safetensors"), contexts, targets, 1, str(tmp_path / "reference"), None
    )
    do(read_job(job.save(tmp_path / "job.json")))
    do(replace(job, model=str(worse), result=str(tmp_path / "losses.json")))
    for found, context in zip(json.loads((tmp_path / "losses.json").read_text()), contexts, strict=True):
        p, q = (log_probabilities(path, cut(rows, context, 1), targets) for path in (tiny_model, worse))
        kl = (p.exp() * (p - q)).sum(-1).mean()
        assert found["kl"] == pytest.approx(float(kl), rel=2e-3)
        assert found["kl"] > 1e-3
        assert found["top1"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
        wanted = rows[:, -targets:].unsqueeze(-1)
        for key, x in (("merged_perplexity", p), ("perplexity", q)):
            assert found[key] == pytest.approx(float((-x.gather(-1, wanted)).mean().exp()), rel=1e-3)
        assert (found["context"], found["tokens"]) == (context, 32)


def log_probabilities(path: Path, ids: torch.Tensor, targets: int) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state.float() @ model.lm_head.weight.float().T
    return hidden[:, -targets - 1 : -1].double().log_softmax(-1)


def test_what_begins_a_row_stands_in_front_of_every_context() -> None:
    rows = torch.tensor([[1, 10, 11, 12, 13, 14]])
    assert cut(rows, 3, 1).tolist() == [[1, 13, 14]]
    assert cut(rows, 6, 1).tolist() == rows.tolist()
    assert cut(rows, 3, 0).tolist() == [[12, 13, 14]]


def test_the_reference_is_kept_as_it_was(tiny_model: Path, rows: torch.Tensor, tmp_path: Path) -> None:
    save_file({"rows": rows}, tmp_path / "rows.safetensors")
    do(LossJob(str(tiny_model), str(tmp_path / "rows.safetensors"), (96,), 8, 0, str(tmp_path / "kept"), None))
    kept = read_reference(tmp_path / "kept", (96,))[96]
    model = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    live = predicted(model, rows, 8)
    assert torch.equal(kept.hidden, live.hidden)
    assert compare(live, kept).kl == pytest.approx(0.0, abs=1e-9)
    assert kept.targets.tolist() == rows[:, -8:].reshape(-1).tolist()


def test_logits_that_stream_are_compared_like_those_that_are_kept() -> None:
    targets = torch.zeros(600, dtype=torch.int64)
    hidden = torch.randn(2, 600, 8, generator=torch.Generator().manual_seed(0))
    ours, theirs = (Predictions(states, torch.eye(8), targets) for states in hidden)
    buffer = np.empty(8, dtype=np.float32)

    def overwritten():
        for row in theirs.hidden.numpy():
            buffer[:] = row
            yield buffer

    assert compare(ours, StreamedLogits(overwritten())) == compare(ours, theirs)


def test_rows_of_padding_in_one_vocabulary_are_left_out() -> None:
    hidden, targets = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(5, dtype=torch.int64)
    head = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([head, torch.full((2, 8), 9.0)])
    assert compare(Predictions(hidden, padded, targets), Predictions(hidden, head, targets)).kl == pytest.approx(
        0.0, abs=1e-12
    )


@pytest.mark.parametrize(("window", "expected"), [(16384, (2048, 16384)), (2048, (2048,)), (512, (512,))])
def test_contexts_are_2k_and_the_full_window(window: int, expected: tuple[int, ...]) -> None:
    assert contexts_of(window) == expected


@pytest.mark.parametrize("wanted", [[512, 4097], [1, 64]])
def test_contexts_that_cannot_be_measured_are_refused(wanted: list[int]) -> None:
    with pytest.raises(UserError, match="give lengths of 2 to 4096 tokens"):
        contexts_of(4096, wanted)
