"""The card says what was measured and where nothing was, marks what is beyond its bound, and is valid on the hub."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from huggingface_hub import ModelCard
from shipped_run import AWQ_NAME, GPTQ_NAME, add_variants, shipped_run, stranger

import scripts.card
from data.errors import UserError
from data.render import PROMPT_FORMATS
from evals.card_picture import draw_card
from evals.card_text import markdown
from export.artefact import read_artefact, record_of
from export.card.card import changed_since, placed, write_card
from export.card.facts import Options, gather, progress_of
from export.card.gaps import make_again, missing
from export.card.licence import Licence, hub_fields, licence_of_base
from export.card.metadata import for_gguf_repository
from export.card.tables import losses_table, verdict
from export.card.training import duration, prompt_example, separators_trained
from export.merge.model import open_merged
from export.proof.memory import cache_bytes, predicted_ram
from export.quantize.variants import planned
from scripts.quantize import section_of

STATED = Options("someone/base", "llama2", "cc-by-nc-4.0", ("en",), ("someone/records",), "A. Nauthor")


@pytest.fixture(scope="module")
def shipped(tiny_model: Path, records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shipped_run(tiny_model, records, tmp_path_factory.mktemp("runs") / "tiny-run")


@pytest.fixture
def run(shipped: Path, tmp_path: Path) -> Path:
    """A copy that a test may add to."""
    return Path(shutil.copytree(shipped, tmp_path / "tiny-run"))


def written(run: Path, options: Options = STATED) -> str:
    return write_card(run, options, None)[1].read_text()


def model_report(name: str, perplexities: dict[int, float], *, is_control: bool = False) -> dict:
    interval = {"value": 9.5, "low": 9.0, "high": 10.0}
    sliding = {
        f"sliding/{c}": {"perplexity": p, "loss": 2.0, "tokens": 511, "row_length": 512, "joined": False}
        for c, p in perplexities.items()
    }
    paired = {"documents": [0, 1], "joined": False, "resampled": 2}
    position = [{"first": 1, "last": 512, "loss": 2.5}]
    return {
        "name": name, "what": f"what {name} is", "is_control": is_control, "window": 512, "original_window": 256,
        "paired": {str(c): interval for c in perplexities},
        "measurements": {**sliding, "paired": paired, "by_position": position}, "lm_eval": {},
    }  # fmt: skip


def add_report(run: Path) -> dict:
    """A report card as `scripts.evaluate` writes it, with numbers of its own."""
    models = [model_report(run.name, {128: 17.17, 512: 15.15})]
    models.append(model_report("base", {128: 18.18, 512: 44.44}, is_control=True))
    text = {"source": "Some books", "sha256": "ab" * 32, "documents": 2}
    measured = {"contexts": [128, 512], "stride": 256, "targets": 16, "probes": 0}
    report = {"text": text, "settings": measured, "models": models}
    (run / "evals").mkdir(exist_ok=True)
    (run / "evals" / "report.json").write_text(json.dumps(report))
    draw_card(report, run / "evals" / "report.png")
    return report


def change(run: Path, name: str, method: str, **changes: object) -> None:
    replace(read_artefact(record_of(run, name, method)), **changes).save(run)


# --- what is in it ---


def test_everything_measured_is_in_the_card(run: Path) -> None:
    add_report(run)
    add_variants(run)
    card = written(run)
    record = json.loads((run / "merged" / "merge.json").read_text())
    assert f"| mean KL per token (nats) | {record['parity']['kl']:.2e} | 1e-04 |" in card
    assert "| 512 | 15.15 | 44.44 |" in card
    assert "![Perplexity by context length, with controls](evals/report.png)" in card
    assert "fine-tuned with QLoRA on" in card
    assert "extended from 256 to 512 tokens" in card
    assert card.count("all 2 passed") == 4
    assert "Made by A. Nauthor" in card
    assert "not measured" not in card.split("## Training")[0].lower().split("## overview")[1].split("## prompt")[1]


def test_the_provided_files_are_listed_with_every_choice(run: Path) -> None:
    add_variants(run)
    card = written(run)
    gptq = next(line for line in card.splitlines() if line.startswith(f"| `{GPTQ_NAME}`"))
    assert "| 4 | 32 | Yes | No | 0.01 | its training data | 512 | 3.0 kB | transformers, ExLlamaV2* | 92.5% |" in gptq
    assert "within the bound of 0.1: KL 0.091 at 512 tokens" in gptq
    assert f"- vLLM does not load `{GPTQ_NAME}`: act-order with groups." in card
    assert f"- transformers with `{GPTQ_NAME}`: with gptqmodel installed." in card
    awq = next(line for line in card.splitlines() if line.startswith("| `awq-4bit-128g`"))
    assert "small loss, within the bound of 0.1: KL 0.004" in awq
    q4 = next(line for line in card.splitlines() if line.startswith("| `run-Q4_K_M.gguf`"))
    config = json.loads((run / "merged" / "config.json").read_text())
    assert f"{predicted_ram(config, 1998, 512) / 1e9:.2f} GB | 321" not in q4  # decimal GB on both sides
    assert "| Q4_K_M | 4.85 | 2.0 kB | 0.50 GB | 0.32 GB (at 512) |" in q4
    assert "hardly any loss" in q4


def test_a_variant_beyond_its_bound_is_marked_not_hidden(run: Path) -> None:
    add_variants(run)
    card = written(run)
    assert "⚠ beyond the bound of 0.1: KL 0.41 at 512 tokens" in card
    assert "| Q2_K ⚠ | 512 | 2,048 | 0.41 |" in card
    assert "Beyond the stated bound of quantization loss: Q2_K" in card.split("## Overview")[0]
    assert "llama-cli -m run-Q4_K_M.gguf -c 512" in card


def test_an_unverified_merge_is_said_in_the_first_lines(run: Path) -> None:
    record = json.loads((run / "merged" / "merge.json").read_text())
    (run / "merged" / "merge.json").write_text(json.dumps({**record, "verified": False}))
    (run / "merged").rename(run / "merged-unverified")
    card = written(run)
    body = ModelCard(card).text.strip().splitlines()
    assert body[2].startswith("> **This merge was NOT verified**")
    assert "**Verified**" not in card


def test_a_failed_check_and_another_merge_are_said_first(run: Path) -> None:
    add_variants(run)
    change(run, "Q4_K_M", "gguf", stranger=stranger("llama.cpp", ok=False))
    change(run, "Q2_K", "gguf", merged_sha256="0" * 64)
    card = written(run)
    first = card.split("## Overview")[0]
    assert "**Failed when loaded back**: Q4_K_M" in first
    assert "**Made from another merge** than the one described here: Q2_K" in first
    assert "⚠ 1 of 2 passed; vocabulary: expected 400, found 401" in card


@pytest.mark.parametrize("name", list(PROMPT_FORMATS))
def test_the_prompt_format_is_shown_with_the_separators_that_were_trained(name: str) -> None:
    prompt_format = PROMPT_FORMATS[name]
    shown = {s: prompt_example(prompt_format, s, "</s>") for s in separators_trained(prompt_format)}
    system, end, start = prompt_format.system, prompt_format.response_end, prompt_format.turn_start
    expected = {
        key: f"{system}{s}USER: {{prompt}}{s}ASSISTANT: {{answer}}{end}</s>{start}USER: {{next prompt}}{s}ASSISTANT:"
        for key, s in (("newline", "\n"), ("space", " "))
    }
    assert shown == {key: expected[key] for key in shown}
    assert len(shown) == (2 if name.startswith("airoboros-2.1") else 1)


def test_both_separators_and_the_stopping_criteria_are_in_the_card(run: Path) -> None:
    card = written(run)
    assert "A chat.\nUSER: {prompt}\nASSISTANT: {answer}\n</s>USER:" in card
    assert "A chat. USER: {prompt} ASSISTANT: {answer}\n</s>USER:" in card
    assert "the end-of-sequence token `</s>`" in card
    drawn = json.loads((run / "data.json").read_text())["separators"]
    assert f"{drawn['newlines']:,} x newline, {drawn['spaces']:,} x space" in card


def test_both_bases_where_they_were_measured(run: Path) -> None:
    def side(kl: float, perplexity: float) -> dict:
        parity = {"kl": kl, "top1": 0.98, "max_dlogit": 0.5, "reference_perplexity": 16.8, "other_perplexity": 16.9}
        return {"parity": parity, "perplexity": [{"context": 512, "perplexity": perplexity}]}

    assert "Both ways to merge" not in written(run)
    found = {"live": side(0, 20.0), "dequantized": side(1e-6, 20.01), "original": side(0.012, 20.02)}
    (run / "evals").mkdir()
    (run / "evals" / "compare_bases.json").write_text(json.dumps({**found, "recommendation": "publish the first"}))
    card = written(run)
    assert "| mean KL per token (nats) | 0 | 1.00e-06 | 1.20e-02 |" in card
    assert "| perplexity of the text at 512 tokens | 20.000 | 20.010 | 20.020 |" in card
    assert "\npublish the first.\n" in card


def test_the_code_in_the_card_runs_as_it_stands(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = written(run).split("```python\n")[1].split("```")[0]
    exec(code.replace("USER/MODEL", str(run / "merged")).replace("200", "8"), {})
    assert capsys.readouterr().out


def test_the_exact_config_and_the_accounting(run: Path) -> None:
    card = written(run)
    assert (run / "config.yaml").read_text().rstrip().splitlines()[-1] in card
    data = json.loads((run / "data.json").read_text())
    counting = data["categories"]["counting"]
    assert f"| counting | {counting['kept']} | {counting['held_out']} |" in card
    assert f"**{data['total']['trained_tokens']:,}**" in card


def test_home_is_nobodys_business(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parent))
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"report_to: [] # {run.parent}/secret-place\n")
    assert "~/secret-place" in written(run)
    assert f"{run.parent}/" not in written(run)


# --- what is not ---


def test_what_was_not_measured_says_so(run: Path) -> None:
    card = written(run, Options())
    assert "### Perplexity by context\n\nNot measured." in card
    assert "Only the merged model; nothing was quantized." in card
    assert "- Base model: **unknown**" in card
    gaps = "\n".join(missing(gather(run, Options())))
    for text in ("scripts.evaluate", "scripts.quantize", "--base-model", "--base-license", "--data-license"):
        assert text in gaps


def test_a_run_without_merge_or_metrics_still_has_a_card(run: Path) -> None:
    shutil.rmtree(run / "merged")
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    card = written(run)
    assert "Not measured: the run has not been merged." in card
    assert "not recorded (no metrics.jsonl)" in card
    assert "Hardware: not recorded" in card
    assert any("scripts.merge" in gap for gap in missing(gather(run, STATED)))


def test_variants_that_nobody_measured(run: Path) -> None:
    add_variants(run)
    change(run, "Q2_K", "gguf", losses=(), stranger=None)
    card = written(run)
    row = next(line for line in card.splitlines() if line.startswith("| `run-Q2_K.gguf`"))
    assert row.endswith("| not measured | not measured | not measured | loss not measured |")
    assert "| Q2_K | not loaded back |" in card
    assert "llama-cli -m run-Q4_K_M.gguf" in card, "the smallest that was measured"
    assert any("its loss and loading it back of Q2_K" in gap for gap in missing(gather(run, STATED)))


def test_what_is_missing_comes_with_a_command_that_works(run: Path) -> None:
    """Read as the quantize command reads it, each names the very variant that is there."""
    made = {artefact.name: artefact for artefact in add_variants(run)}
    own = {"dataset": "training", "samples": 8, "sequence_length": 512}
    settings = {"type": "Q4_K_M", "imatrix": True, "calibration": own}
    changed = replace(made["Q4_K_M"], name="Q4_K_M-imatrix", settings=settings)
    changed.save(run)
    facts = gather(run, STATED)
    for artefact in (*made.values(), changed):
        program, flag, module, path, method, *settings = shlex.split(make_again(run, facts.merge, artefact))
        assert (program, flag, module, path, method) == ("python", "-m", "scripts.quantize", str(run), artefact.method)
        section = section_of(open_merged(run), None, method, settings)
        plans = planned(section)
        assert [plan.name for plan in plans] == [artefact.name]
        if artefact is changed:
            assert plans[0].calibration.model_dump() == own
    shutil.rmtree(run / "gguf")
    (run / "merged").rename(run / "merged-original")
    for folder in (*run.glob("gptq-*"), *run.glob("awq-*")):
        shutil.rmtree(folder)
    command = f"python -m scripts.quantize {run} gguf Q4_K_M --merge merged-original"
    assert f"no quantized variants; run: {command} (or gptq, awq)" in missing(gather(run, STATED))


def test_losses_on_other_tokens_do_not_stand_beside_the_rest(run: Path) -> None:
    add_variants(run)
    change(run, "Q2_K", "gguf", loss_of="elsewhere", machine="a large one")
    card = written(run)
    assert "Measured on other tokens, so not to be compared with these: Q2_K." in card
    assert "\n| Q2_K ⚠ | 512 |" not in card
    assert "\n| Q4_K_M | 512 |" in card
    row = next(line for line in card.splitlines() if line.startswith("| `run-Q2_K.gguf`"))
    assert row.count("measured on other tokens") == 3
    assert "Speed and memory were measured on: a large one (`Q2_K`)." in card
    for name in ("Q4_K_M", "Q2_K"):
        change(run, name, "gguf", machine="a large one")
    for name, method in ((GPTQ_NAME, "gptq"), (AWQ_NAME, "awq")):
        change(run, name, method, machine="a large one")
    assert "Speed and memory were measured on: a large one.\n" in written(run)


def test_a_loss_that_is_no_number_is_beyond_every_bound(run: Path) -> None:
    artefact = add_variants(run)[0]
    broken = replace(artefact, losses=(replace(artefact.losses[0], kl=float("nan")), artefact.losses[1]))
    assert verdict(broken) == "⚠ beyond the bound of 0.1: KL nan at 128 tokens"
    assert f"| {GPTQ_NAME} ⚠ | 128 |" in losses_table([broken], "")


def test_positions_that_were_not_trained_are_a_limit(run: Path) -> None:
    assert "Positions up to 128 were trained. The window of 512 is what the config states" in written(run)


# --- the hub's metadata ---


def test_the_metadata_is_what_the_hub_reads(run: Path) -> None:
    report = add_report(run)
    add_variants(run)
    data = ModelCard(written(run)).data
    assert (data.base_model, data.language, data.datasets) == ("someone/base", ["en"], ["someone/records"])
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert (data.license, data.license_name) == ("other", "llama2-and-cc-by-nc-4.0")
    assert {"llama", "qlora", "gptq", "awq", "rope-linear"} <= set(data.tags or ())
    assert data.eval_results is not None
    found = {result.dataset_args["context"]: result.metric_value for result in data.eval_results}  # type: ignore[index]
    assert found == {128: 17.17, 512: 15.15}
    assert {result.dataset_name for result in data.eval_results} == {report["text"]["source"]}


def test_what_is_not_known_is_left_out_of_the_metadata(run: Path) -> None:
    fields = ModelCard(written(run, Options())).data.to_dict()
    assert not {"license", "license_name", "base_model", "datasets", "language", "model-index"} & set(fields)


def test_a_report_about_other_models_is_not_this_ones(run: Path) -> None:
    report = add_report(run)
    report["models"] = [model_report(name, {128: 4.0, 512: 3.0}) for name in ("other", "third")]
    (run / "evals" / "report.json").write_text(json.dumps(report))
    assert "model-index" not in ModelCard(written(run)).data.to_dict()


def test_the_card_of_the_gguf_repository(run: Path) -> None:
    add_variants(run)
    card = for_gguf_repository(placed(written(run), "me/it", "me/it-GGUF"), "me/it")
    fields = ModelCard(card).data.to_dict()
    assert (fields["base_model"], fields["base_model_relation"]) == ("me/it", "quantized")
    assert "gguf" in fields["tags"]
    assert "hf download me/it-GGUF run-Q4_K_M.gguf" in card
    assert "USER/MODEL" not in card


@pytest.mark.parametrize(
    ("base", "data", "expected"),
    [
        ("mit", "mit", {"license": "mit"}),
        ("llama2", "mit", {"license": "other", "license_name": "llama2-and-mit"}),
        ("My Own 1.0", "My Own 1.0", {"license": "other", "license_name": "my-own-1.0"}),
        (None, "mit", {}),
        ("mit", None, {}),
    ],
)
def test_a_licence_is_never_invented(base: str | None, data: str | None, expected: dict) -> None:
    assert hub_fields(Licence(base, ""), Licence(data, "")) == expected


def test_a_base_on_the_hub_is_named_and_its_licence_read_at_the_runs_revision(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"] |= {"name_or_path": "someone/hub-base", "revision": "v1"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "base.json").write_text('{"commit": "c0ffee", "files": {}}')
    said = gather(run, Options()).base_licence.source
    assert said == "what this machine has of its repository says nothing about it"
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    asked = []

    def cached(repo: str, name: str, revision: str | None) -> str:
        asked.append((repo, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr("export.card.licence.try_to_load_from_cache", cached)
    card = ModelCard(written(run, Options()))
    assert card.data.to_dict()["base_model"] == "someone/hub-base"
    assert "[someone/hub-base](https://huggingface.co/someone/hub-base)" in card.text
    assert "- Base model: apache-2.0" in card.text
    assert asked == [("someone/hub-base", "README.md", "v1")]
    assert not any("--base-model" in gap for gap in missing(gather(run, Options())))


def test_a_licence_is_read_where_the_base_states_it(tmp_path: Path) -> None:
    assert licence_of_base(str(tmp_path), None).name is None
    (tmp_path / "LICENSE").write_text("\n  Some Licence, version 3\nmore\n")
    assert licence_of_base(str(tmp_path), None) == Licence(None, 'its LICENSE begins "Some Licence, version 3"')
    (tmp_path / "README.md").write_text("---\nlicense: [broken\n---\n")
    assert licence_of_base(str(tmp_path), None).name is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\nA base.\n")
    assert licence_of_base(str(tmp_path), None) == Licence("apache-2.0", "as its own model card says")
    assert licence_of_base(str(tmp_path), "mit").name == "mit"


# --- the rules behind the words ---


def test_predicted_memory_is_weights_cache_and_overhead() -> None:
    config = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
    assert cache_bytes(config, 4096) == 2 * 2**30  # LLaMA-7B: half a MiB a token
    assert cache_bytes({**config, "num_key_value_heads": 8, "head_dim": 128}, 4096) == 2**29
    assert predicted_ram(config, 4_000_000_000, 4096) == 4_500_000_000 + 2 * 2**30


def test_verdicts_follow_from_the_bound(run: Path) -> None:
    artefact = add_variants(run)[0]
    words = []
    for kl in (0.001, 0.01, 0.1, 0.1001):
        words.append(
            verdict(replace(artefact, losses=(replace(artefact.losses[0], kl=kl),))).split(",")[0].split(":")[0]
        )
    assert words == ["hardly any loss", "small loss", "within the bound of 0.1", "⚠ beyond the bound of 0.1"]


def test_progress_is_summed_and_the_last_loss_weighed_by_tokens() -> None:
    step = {"tokens": 100, "seconds": 2.0, "trained_tokens": 10}
    lines = [{**step, "step": n, "loss": float(n)} for n in range(1, 19)]
    lines += [{**step, "step": 19, "loss": 1.0}, {**step, "step": 20, "loss": 4.0, "trained_tokens": 30}]
    lines.append({"step": 20, "validation_loss": 3.5})
    found = progress_of(lines)
    assert found is not None
    assert (found.steps, found.tokens, found.trained_tokens, found.seconds) == (20, 2000, 220, 40.0)
    assert (found.first_loss, found.last_loss, found.last_steps) == (1.0, (1.0 * 10 + 4.0 * 30) / 40, 2)
    assert found.validation == ((20, 3.5),)
    assert progress_of([]) is None
    assert [duration(s) for s in (5.4, 295.0, 7384.0)] == ["5 s", "4 min 55 s", "2 h 3 min"]


# --- the command ---


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command; returns its exit code, stdout and stderr."""
    monkeypatch.chdir(ROOT)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["card", *map(str, arguments)])
        code = scripts.card.main()
        return code, *capsys.readouterr()

    return run


def test_the_command_says_where_and_what_is_missing(call, run: Path, tmp_path: Path) -> None:
    code, out, _ = call(run, "--language", "en", "--output", tmp_path / "elsewhere.md")
    assert code == 0
    assert f"written: {tmp_path}/elsewhere.md" in out
    assert "not measured: perplexity by context; run: python -m scripts.evaluate" in out
    assert not (run / "README.md").exists()
    assert "- en\n" in (tmp_path / "elsewhere.md").read_text()


def test_the_output_may_be_anywhere_that_can_be_written(call, run: Path, tmp_path: Path) -> None:
    assert call(run, "--output", tmp_path / "new" / "folder" / "card.md")[0] == 0
    assert (tmp_path / "new" / "folder" / "card.md").is_file()
    for output, why in ((tmp_path / "new", "it is a directory"), (run / "config.yaml" / "card.md", "exists|directory")):
        code, _, err = call(run, "--output", output)
        assert (code, err.count("error: ")) == (2, 1)
        assert re.search(f"cannot be written .*({why})", err, re.IGNORECASE)


def test_a_card_that_was_edited_is_not_overwritten(call, run: Path) -> None:
    assert call(run)[0] == 0
    assert call(run, "--language", "en")[0] == 0
    assert changed_since(run) == []
    with (run / "README.md").open("a") as file:
        file.write("My own words.\n")
    code, _, err = call(run)
    assert code == 2
    assert "was edited" in err
    assert (run / "README.md").read_text().endswith("My own words.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--language", "English"], "'English' is no code of a language"),
        (["--base-model", "a b"], "'a b' is no name on the hub"),
        (["--dataset", "a/b/c"], "'a/b/c' is no name on the hub"),
    ],
)
def test_statements_that_the_hub_would_refuse(call, run: Path, arguments: list[str], message: str) -> None:
    code, _, err = call(run, *arguments)
    assert (code, err.count("error: ")) == (2, 1)
    assert message in err


def test_bad_runs_and_broken_records(call, run: Path, tmp_path: Path) -> None:
    assert "not a run directory" in call(tmp_path)[2]
    add_variants(run)
    (run / "gguf" / "Q2_K.json").write_text('{"name": 1}')
    assert "Q2_K.json: not the record of a variant" in call(run)[2]
    (run / "gguf" / "Q2_K.json").unlink()
    (run / "data.json").write_text("{")
    assert "data.json: cannot be read" in call(run)[2]
    shutil.rmtree(run / "adapter")
    assert "has not finished" in call(run)[2]


def test_an_older_report_is_one_clear_message(run: Path) -> None:
    report = add_report(run)
    assert markdown(report)
    del report["settings"]["stride"]
    (run / "evals" / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="another version"):
        write_card(run, STATED, None)
