"""What is known about one quantized variant: how it was made, where it loads, and what it lost. Kept beside it.

`runs/x/gptq-4bit-32g-actorder_True/variant.json`, `runs/x/gguf/Q4_K_M.json`: written last, so that a variant with such
a record is whole.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.errors import UserError
from export.files import File
from train.run.directory import write_whole

RECORD = "variant.json"
GGUF_FOLDER = "gguf"


@dataclass(frozen=True)
class LoadsIn:
    """Whether a program takes the variant.

    Attributes:
        program: `transformers`, `vLLM`, `llama.cpp`, `ExLlama` (1), `ExLlamaV2`.
        loads: what the rule says, or what happened.
        seen: True where it was loaded there; False where it is known by rule.
        note: how to load it, or why it is refused.
    """

    program: str
    loads: bool
    seen: bool
    note: str = ""


@dataclass(frozen=True)
class Loss:
    """What was lost against the merged model, over the last `tokens` tokens of rows of `context` tokens.

    Attributes:
        kl: mean KL(merged || variant) per token, in nats.
        top1: share of tokens for which both prefer the same next token.
        perplexity: the variant's; merged_perplexity: of the merged model on the same tokens.
    """

    context: int
    tokens: int
    kl: float
    top1: float
    perplexity: float
    merged_perplexity: float


@dataclass(frozen=True)
class Artefact:
    """One finished variant.

    Attributes:
        name: as in `Planned`; method: gptq, awq or gguf.
        settings: the variant's section of the config; calibration: dataset, samples, sequence_length, tokens, sha256 of
            the ids, and `what` in words; None where it is not calibrated.
        files: every file but this record, with the path relative to the variant's folder.
        bits_per_weight: 8 x bytes of the weight files / parameters.
        loads_in: a line for each program.
        stranger: what a separate process without our code found (strangers/); None where it was not asked.
        losses: one per context length.
        machine: that the runtime's speed and memory were measured on.
        loss_of: what they were measured on, as a hash: losses with equal ones can be compared.
        max_kl: above it a variant is marked.
        merged_sha256: of the manifest of the merged model that it was made from; merge_verified: as merge.json says.
        versions: of the packages that made it; seconds: that it took.
    """

    name: str
    method: str
    settings: dict[str, Any]
    calibration: dict[str, Any] | None
    files: tuple[File, ...]
    bits_per_weight: float
    loads_in: tuple[LoadsIn, ...]
    stranger: dict[str, Any] | None
    losses: tuple[Loss, ...]
    max_kl: float
    merged_sha256: str
    merge_verified: bool
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    loss_of: str = ""
    machine: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def worst_kl(self) -> float | None:
        """The largest KL that was measured."""
        return max((loss.kl for loss in self.losses), key=lambda kl: math.inf if math.isnan(kl) else kl, default=None)

    @property
    def beyond_bound(self) -> bool:
        """Whether it lost more than the stated bound."""
        return any(not loss.kl <= self.max_kl for loss in self.losses)  # also where it is no number

    def folder(self, run: Path) -> Path:
        """Where its files are."""
        return folder_of(run, self.name, self.method)

    def save(self, run: Path) -> None:
        """Write the record to its place in the run, whole."""
        self.save_in(self.folder(run))

    def save_in(self, folder: Path) -> None:
        """Write the record beside the files in a folder, whole."""
        write_whole(folder / record_name(self.name, self.method), json.dumps(asdict(self), indent=2) + "\n")


def folder_of(run: Path, name: str, method: str) -> Path:
    """The directory of a variant's files; all GGUF files share one."""
    return run / (GGUF_FOLDER if method == "gguf" else name)


def record_of(run: Path, name: str, method: str) -> Path:
    """The path of a variant's record."""
    return folder_of(run, name, method) / record_name(name, method)


def record_name(name: str, method: str) -> str:
    """The file name of a variant's record."""
    return f"{name}.json" if method == "gguf" else RECORD


def read_artefact(record: Path) -> Artefact:
    """The artefact of a record.

    Raises:
        UserError: the file is not such a record.
    """
    made_of = {"files": File, "loads_in": LoadsIn, "losses": Loss}
    try:
        content: dict[str, Any] = json.loads(record.read_text())
        parts = {key: tuple(kind(**item) for item in content[key]) for key, kind in made_of.items()}
        return Artefact(**{**content, **parts})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"not the record of a variant ({type(error).__name__}: {error})"
        raise UserError(str(record), found, "remove it, and make the variant again") from None


def artefacts(run: Path) -> list[Artefact]:
    """Every finished variant of a run, by method and then by size, largest first."""
    records = [*run.glob(f"gptq-*/{RECORD}"), *run.glob(f"awq-*/{RECORD}"), *run.glob(f"{GGUF_FOLDER}/*.json")]
    order = ("gptq", "awq", "gguf")
    return sorted(map(read_artefact, records), key=lambda a: (order.index(a.method), -a.size, a.name))
