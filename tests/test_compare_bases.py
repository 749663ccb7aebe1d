"""Both bases are measured alike, one is published, and the advice follows from the numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from conftest import ROOT, settings

from data.errors import UserError
from evals.divergence import Divergence
from evals.perplexity import Perplexity
from evals.text import Text, read_text
from export.merge.compare_bases import Comparison, Measured, compare_bases, default_contexts, recommendation
from export.merge.manifest import require_intact
from export.merge.ship import Shipped
from export.merge.source import Form, open_source
from scripts.merge import bases_table
from train.config import Config
from train.rope.spec import RopeSpec
from train.session import run_training


@pytest.fixture(scope="module")
def run(tiny_model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    wanted = settings(tiny_model, records, path, learning_rate=2e-2, max_grad_norm=10.0, max_steps=4)
    run_training(Config.model_validate(wanted), Accelerator(cpu=True), resume=False)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = tmp_path_factory.mktemp("text") / "long.txt"
    path.write_text(" ".join(f"Rope number {n} is {3 * n} strands long." for n in range(400)))
    return read_text(path)


def test_both_are_measured_and_the_trained_one_is_published(run: Path, text: Text) -> None:
    said: list[str] = []
    found = compare_bases(run, "dequantized", Form(), None, text, (32, 512), 600, said.append)
    assert found.published.folder == run / "merged"
    assert found.published.verified
    assert found.original.shipped.divergence.kl > 100 * found.dequantized.shipped.divergence.kl
    assert not found.original.shipped.verified
    assert [p.context for p in found.live] == [32, 512]
    assert {p.tokens for p in (*found.live, *found.original.perplexities)} == {511}
    for live, ours, theirs in zip(found.live, found.dequantized.perplexities, found.original.perplexities, strict=True):
        assert ours.loss == pytest.approx(live.loss, abs=1e-3)
        assert abs(theirs.loss - live.loss) > 20 * abs(ours.loss - live.loss)
    assert sorted(path.name for path in run.iterdir() if "merged" in path.name) == ["merged"]
    require_intact(run / "merged", full=True)
    record = json.loads((run / "evals" / "compare_bases.json").read_text())
    assert record["kept"] == "dequantized"
    assert record["original"]["parity"] == found.original.shipped.divergence.to_json()
    assert record["live"]["perplexity"][1]["perplexity"] == math.exp(found.live[1].loss)
    assert record["text"]["sha256"] == text.sha256
    assert record["recommendation"] == recommendation(found)
    assert len(bases_table(found).rows) == 6


def test_the_original_is_kept_where_it_is_asked_for(run: Path, text: Text) -> None:
    found = compare_bases(run, "original", Form(), 10.0, text, (32,), 100, lambda _: None)
    assert found.published.folder == run / "merged-original"
    assert require_intact(run / "merged-original").merge["onto"] == "original"


def test_contexts_go_as_far_as_the_text(run: Path) -> None:
    source = open_source(run, Form())
    assert default_contexts(source, 10_000) == (128, 512)
    assert default_contexts(source, 500) == (128,)
    assert default_contexts(source, 100) == ()


def test_lengths_that_cannot_be_measured_are_refused(run: Path, text: Text) -> None:
    for contexts, tokens, found in (((1,), 100, "2 tokens or more"), ((), 100, "less than the shortest context")):
        with pytest.raises(UserError, match=found):
            compare_bases(run, "dequantized", Form(), None, text, contexts, tokens, lambda _: None)
    with pytest.raises(UserError, match="tokens in all, and a row needs"):
        compare_bases(run, "dequantized", Form(), None, text, (100_000,), 100, lambda _: None)
    assert not (run / ".merged.partial").exists()


def comparison(records: tuple[float, float], at_512: tuple[float, float], kl: float = 1e-6) -> Comparison:
    """With these perplexities of dequantized and original."""
    rope = RopeSpec("default", 1.0, 1e4, 16, 512)

    def measured(onto, kl: float, on_records: float, on_text: float) -> Measured:
        shipped = Shipped(Path("x"), Divergence(kl, 0.9, 1.0, 16.0, on_records, 100), 1e-4, rope)
        return Measured(onto, shipped, (Perplexity(512, 256, math.log(on_text), 100),))

    ours, theirs = (measured(*args) for args in (
        ("dequantized", kl, records[0], at_512[0]), ("original", 0.19, records[1], at_512[1])
    ))  # fmt: skip
    return Comparison(ours.perplexities, ours, theirs, "dequantized")


def test_the_advice_weighs_faithful_against_better() -> None:
    everywhere = recommendation(comparison((16.8, 16.0), (9.0, 8.5)))
    assert "dequantized is the model that was trained (KL 1e-06): publish it, unless perplexity is all" in everywhere
    assert "16.00 against 16.80 on the records; 8.50 against 9.00 on text at 512" in everywhere
    assert "another model (KL 0.19)" in everywhere
    assert everywhere.endswith("--onto original --max-kl 0.21")
    partly = recommendation(comparison((16.8, 16.0), (9.0, 9.2)))
    assert "better in part only (16.00 against 16.80 on the records)" in partly
    assert "no lower perplexity anywhere: publish dequantized" in recommendation(comparison((16.0, 16.0), (9.0, 9.2)))
    assert "NOT the model that was trained" in recommendation(comparison((16.8, 16.0), (9.0, 8.5), kl=0.01))


def test_a_difference_that_is_noise_is_none() -> None:
    close = comparison((16.00, 15.99), (9.0, 9.0))
    assert "no lower perplexity anywhere" in recommendation(close)
    assert dataclasses.replace(close, kept="original").published is close.original.shipped


@pytest.mark.program
def test_the_command_prints_both_and_the_advice(run: Path, text: Text) -> None:
    options = ["--compare-bases", "--contexts", "32,128", "--tokens", "300", "--text", text.source]
    command = [sys.executable, "-m", "scripts.merge", str(run), *options, "--max-shard-size", "60KB"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "perplexity, text at 128" in done.stdout
    assert "dequantized is the model that was trained" in done.stdout
    assert "verified: " in done.stdout
    assert (run / "merged" / "model.safetensors.index.json").is_file()


@pytest.mark.program
def test_a_size_that_is_none_is_refused_by_the_command(run: Path) -> None:
    command = [sys.executable, "-m", "scripts.merge", str(run), "--max-shard-size", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'5' is not a size, such as 5GB or 500MB" in done.stderr
