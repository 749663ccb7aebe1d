"""What quantization cost: each variant against the merged model, on the same tokens, with little and with full context.

The tokens are the last ones of long rows of held-out text; with less context, the rows' beginnings are cut off. Of the
merged model only the last hidden states are kept, so the two models are never in memory together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPTQConfig, PreTrainedModel

from data.errors import UserError
from evals.divergence import Predictions, StreamedLogits, compare
from evals.gguf import GgufScorer
from evals.load import device_here, load_dense
from evals.scoring import forget_long_rows
from export.artefact import Loss
from train.loss import head_of

TARGETS = 512  # tokens compared at the end of each row


@dataclass(frozen=True)
class LossJob:
    """What a worker process is asked to measure; paths as text, so that it can be handed over as JSON.

    Attributes:
        model: a directory, or a .gguf file.
        rows: a .safetensors file with `rows`, int64, shape (rows, tokens).
        contexts: ascending; the last is the length of the rows.
        bos: how many tokens at the beginning of each row (none or one) stand in front of every context.
        reference: the merged model's predictions: a .safetensors file, written when there is no `result` to write.
        result: where the losses go, as JSON; None asks for the reference.
    """

    model: str
    rows: str
    contexts: tuple[int, ...]
    targets: int
    bos: int
    reference: str
    result: str | None

    def save(self, path: Path) -> Path:
        """Write it for the worker."""
        path.write_text(json.dumps(asdict(self)))
        return path


def read_job(path: Path) -> LossJob:
    """The job of a file."""
    content = json.loads(path.read_text())
    return LossJob(**{**content, "contexts": tuple(content["contexts"])})


def do(job: LossJob) -> None:
    """Measure what the job asks for, and write it."""
    rows = load_file(job.rows)["rows"]
    if job.result is None:
        model = load_dense(Path(job.model), device_here())
        found = {c: predicted(model, cut(rows, c, job.bos), job.targets) for c in job.contexts}
        save_reference(Path(job.reference), found)
        return
    by_context = {context: cut(rows, context, job.bos) for context in job.contexts}
    found = measured(Path(job.model), by_context, job.targets, read_reference(Path(job.reference), job.contexts))
    Path(job.result).write_text(json.dumps([asdict(loss) for loss in found]))


def cut(rows: torch.Tensor, context: int, bos: int) -> torch.Tensor:
    """The last tokens of each row, with what begins it still in front.

    Args:
        rows: int64, shape (rows, tokens); bos: how many tokens begin a row.

    Returns:
        Shape (rows, context).
    """
    return torch.cat([rows[:, :bos], rows[:, rows.shape[1] - (context - bos) :]], dim=1)


def measured(path: Path, rows: dict[int, torch.Tensor], targets: int, reference: dict[int, Predictions]) -> list[Loss]:
    """The losses of the model at a path, one for each context of the reference."""
    if path.suffix == ".gguf":
        with closing(GgufScorer(path)) as scorer:
            return [
                _loss(context, merged, StreamedLogits(_gguf_logits(scorer, rows[context], targets)))
                for context, merged in reference.items()
            ]
    model = load_quantized(path)
    return [_loss(c, merged, predicted(model, rows[c], targets)) for c, merged in reference.items()]


def _gguf_logits(scorer: GgufScorer, rows: torch.Tensor, targets: int) -> Iterator[Any]:
    return chain.from_iterable(scorer.logits(row, targets) for row in rows.tolist())


def _loss(context: int, merged: Predictions, theirs: Any) -> Loss:
    found = compare(merged, theirs)
    return Loss(context, found.tokens, found.kl, found.top1, found.other_perplexity, found.reference_perplexity)


@torch.no_grad()
def predicted(model: PreTrainedModel, rows: torch.Tensor, targets: int) -> Predictions:
    """What a model of transformers says about the last `targets` tokens of each row.

    Args:
        rows: int64, shape (rows, tokens), tokens > targets.
    """
    states = [_states(model, row[None], targets) for row in rows]
    head = head_of(model).weight.detach().float().cpu()
    return Predictions(torch.cat(states), head, rows[:, -targets:].reshape(-1))


def _states(model: PreTrainedModel, ids: torch.Tensor, targets: int) -> torch.Tensor:
    forget_long_rows(model)
    hidden = model.get_decoder()(ids.to(model.device), use_cache=False).last_hidden_state
    return hidden[0, -targets - 1 : -1].float().cpu()


def load_quantized(path: Path) -> PreTrainedModel:
    """A GPTQ or AWQ directory by plain transformers; on a CPU it computes in float32.

    Raises:
        UserError: it cannot be loaded here.
    """
    device = device_here()
    own = json.loads((path / "config.json").read_text()).get("quantization_config", {})
    options: dict[str, Any] = {"dtype": "auto" if device.type == "cuda" else torch.float32, "trust_remote_code": False}
    if device.type == "cpu" and (own.get("quant_method"), own.get("bits"), own.get("group_size")) == ("gptq", 4, -1):
        # Of gptqmodel's kernels for a CPU only this one takes a whole row as a group; it is not found by itself.
        options["quantization_config"] = GPTQConfig(bits=4, backend="torch")
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path), device_map={"": device}, **options)
    except (OSError, ValueError, ImportError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(str(path), f"cannot be loaded: {first}", "quantize it again") from None
    return model.eval()


def save_reference(path: Path, predictions: dict[int, Predictions]) -> None:
    """Keep predictions by context; the head, which is the same for all, once."""
    tensors = {f"hidden/{context}": p.hidden for context, p in predictions.items()}
    first = next(iter(predictions.values()))
    aside = path.with_name(f".{path.name}.partial")
    save_file({**tensors, "head": first.head.contiguous(), "targets": first.targets.contiguous()}, aside)
    aside.rename(path)


def read_reference(path: Path, contexts: Iterable[int]) -> dict[int, Predictions]:
    """The predictions that were kept."""
    tensors = load_file(path)
    return {c: Predictions(tensors[f"hidden/{c}"], tensors["head"], tensors["targets"]) for c in contexts}


def contexts_of(window: int, wanted: Sequence[int] | None = None) -> tuple[int, ...]:
    """2,048 tokens and the full window, unless others are asked for; ascending.

    Raises:
        UserError: one of them is longer than the window, or too short to predict anything.
    """
    chosen = tuple(sorted(set(wanted or (min(2048, window), window))))
    if chosen[-1] > window or chosen[0] < 2:
        found = f"{', '.join(map(str, chosen))} tokens, and the model's window is {window}"
        raise UserError("--contexts", found, f"give lengths of 2 to {window} tokens")
    return chosen
