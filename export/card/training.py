"""How a model was trained, in the lines of its card: the prompt format as text, the settings, what came of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.conversation import Conversation, Turn
from data.render import BOS, EOS, PromptFormat, Style, always, render_prompt
from export.card.facts import Facts, Progress, Stage
from train.config import Lora
from train.rope.spec import RopeSpec

# A draw that is below every chance of a space, and one that is above.
DRAWS = {"space": 0.0, "newline": 1.0}
METHODS = {
    "default": "none: another window only",
    "linear": "linear position interpolation (arXiv 2306.15595)",
    "ntk": "NTK-aware scaling of theta",
    "dynamic": "dynamic NTK scaling",
    "ntk_by_parts": "NTK-by-parts interpolation",
    "yarn": "YaRN (arXiv 2309.00071)",
    "llama3": "Llama 3's scaling",
    "longrope": "LongRoPE (arXiv 2402.13753)",
    "theta": "another theta",
}


def separators_trained(prompt_format: Style) -> dict[str, float]:
    """How often each separator stands where one does, by name; those that never do are left out."""
    if not isinstance(prompt_format, PromptFormat):
        return {}
    shares = {"newline": 1.0 - prompt_format.space_probability, "space": prompt_format.space_probability}
    return {name: share for name, share in shares.items() if share > 0.0}


def prompt_example(prompt_format: Style, separator: str, eos: str | None) -> str:
    """Two turns, written as the model saw them in training, up to where the second answer begins.

    A beginning-of-sequence token in front is left out: tokenizers add it.
    """
    turns = (Turn("{prompt}", "{answer}"), Turn("{next prompt}", ""))
    if isinstance(prompt_format, PromptFormat):
        spans = prompt_format.render(Conversation("", "", None, turns), always(DRAWS[separator]))[:-2]
    else:
        spans = render_prompt(turns[:1], turns[1].prompt, None, prompt_format)
    control = {BOS: "<s>" if eos == "</s>" else "(beginning of sequence)", EOS: eos or "(end of sequence)"}
    shown = spans[1:] if spans[0].text == BOS else spans
    return "".join(control.get(span.text, span.text) if span.control else span.text for span in shown).rstrip(" ")


def training_rows(facts: Facts, stage: Stage) -> list[tuple[str, str]]:
    """Settings and outcomes of a stage, as (what, value)."""
    config, lora, train = stage.config, stage.config.lora, stage.config.train
    quantization = config.quantization
    base = f"{facts.base}, held as {quantization.held_in}"
    base += " (double quant)" if quantization.bits == 4 and quantization.double_quant else ""
    modules = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    in_full = f"; in full: {', '.join(lora.modules_to_save)}" if lora.modules_to_save else ""
    size = ", ".join([f"r {lora.r}, alpha {lora.lora_alpha:g}, dropout {lora.lora_dropout:g}", *_variants(lora)])
    batch = f"{train.per_device_train_batch_size} x {train.gradient_accumulation_steps} rows a step on each process"
    packed = "packed" if config.data.packing == "best_fit" else "one record each"
    length = f"{train.max_steps:,} steps asked for" if train.max_steps else f"epochs: {train.num_train_epochs:g}"
    rows = [
        ("base", base),
        ("LoRA", f"{size}, on {modules}{in_full}"),
        ("rows", f"up to {config.model.max_length:,} tokens, {packed}"),
        ("optimizer", f"{train.optim}, learning rate {train.learning_rate:g}, {train.lr_scheduler_type}"),
        ("batch", f"{batch}; {length}"),
        ("seed", str(train.seed)),
    ]
    return rows + (_outcome(stage.progress) if stage.progress else [("steps", "not recorded (no metrics.jsonl)")])


def _variants(lora: Lora) -> Iterator[str]:
    """In what it is not the usual LoRA."""
    yield from (name for name, used in (("rsLoRA", lora.use_rslora), ("DoRA", lora.use_dora)) if used)
    if lora.init_lora_weights != "default":
        yield f"begun by {lora.init_lora_weights}"
    if lora.loraplus_lr_ratio is not None:
        yield f"LoRA+ ratio {lora.loraplus_lr_ratio:g}"
    if lora.layers_to_transform:
        yield f"layers {', '.join(map(str, lora.layers_to_transform))} only"


def _outcome(progress: Progress) -> list[tuple[str, str]]:
    speed = progress.tokens / progress.seconds if progress.seconds else 0.0
    average = f"mean of the last {progress.last_steps} steps" if progress.last_steps > 1 else "last step"
    evaluated = "; ".join(f"{loss:.4f} after step {step}" for step, loss in _ends(progress.validation))
    return [
        ("steps", f"{progress.steps:,}"),
        ("tokens", f"{progress.tokens:,}, of them {progress.trained_tokens:,} in the loss (answers only)"),
        ("time", f"{duration(progress.seconds)} of optimizer steps, {speed:,.0f} tokens/s"),
        (
            "training loss",
            f"{progress.first_loss:.4f} in the first step, {progress.last_loss:.4f} at the end ({average})",
        ),
        ("held-out loss", evaluated or "not measured"),
    ]


def _ends(values: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    return values if len(values) < 3 else (values[0], values[-1])


def hardware(facts: Facts) -> str:
    """Where it was trained, as environment.json says."""
    found = facts.environment
    if not found:
        return "not recorded (no environment.json)"
    threads = f", {found['cpu_threads']} threads" if "cpu" in str(found.get("topology")) else ""
    return f"{found.get('topology')} ({found.get('device')}{threads})"


def software(facts: Facts) -> str:
    """The versions that trained it."""
    found = facts.environment
    names = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    versions = ", ".join(f"{name} {found[name]}" for name in names if name in found)
    return versions + (f"; this program at git {found['git_commit']}" if found.get("git_commit") else "")


def sources(stage: Stage) -> list[str]:
    """Each data file with its hash and what was read from it."""
    files = [file for source in (stage.data or {}).get("sources", []) for file in source["files"]]
    return [
        f"`{Path(f['name']).name}`: {f['read']:,} records read, {f['rejected']} rejected, sha256 `{f['sha256']}`"
        for f in files
    ]


def separators_drawn(stage: Stage) -> str:
    """How often each separator stood before an answer in the first epoch; empty where it was not counted."""
    found = (stage.data or {}).get("separators") or {}
    counts = {"newline": found.get("newlines"), "space": found.get("spaces")}
    return ", ".join(f"{count:,} x {name}" for name, count in counts.items() if count)


def trained_positions(facts: Facts) -> int:
    """The largest position window that any stage's rows reached, in tokens."""
    return max(max(s.config.model.max_length, s.config.data.pose_length or 0) for s in facts.stages)


def extension(spec: RopeSpec) -> str:
    """The method in words."""
    theta = f", {spec.new_theta:g}" if spec.new_theta else ""
    return f"{METHODS[spec.rope_type]}{theta}"


def duration(seconds: float) -> str:
    """As a person says it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
