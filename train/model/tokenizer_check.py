"""Whether a run's tokenizer reads its data as the checkpoint's own SentencePiece model does; asked at every start."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

from transformers.utils.hub import cached_file

from data.conversation import Conversation
from data.fidelity.agreement import disagreement
from data.fidelity.compare import MODEL_FILE, Fidelity, compare
from data.prepare.make import Say
from data.tokens import Encoder
from train.config import Config, Model
from train.recipe import prompt_format_of

# First records whose texts are looked at; `compare` takes a sample of these.
RECORDS = 2000


def tell_tokenizer(config: Config, encoder: Encoder, records: Iterable[Conversation], say: Say, warn: Say) -> None:
    """Say how the tokenizer compares, and warn of what would train one thing and ask another."""
    name = config.model.name_or_path
    fidelity = check_tokenizer(config.model, encoder, records)
    if fidelity is not None:
        (warn if fidelity.differing else say)("\n".join(fidelity.lines(name)))
    different = disagreement(prompt_format_of(config.data, encoder.tokenizer), encoder)
    if different:
        warn(f"apply_chat_template with the template that will be shipped gives other ids than training: {different}")


def check_tokenizer(model: Model, encoder: Encoder, conversations: Iterable[Conversation]) -> Fidelity | None:
    """Compare on the user's own texts; None where the checkpoint ships no SentencePiece model."""
    file = sentencepiece_file(model.name_or_path, model.revision)
    if file is None:
        return None
    records = islice(conversations, RECORDS)
    texts = list(chain.from_iterable((turn.prompt, turn.response) for record in records for turn in record.turns))
    return compare(encoder.tokenizer, file, texts)


def sentencepiece_file(name_or_path: str, revision: str | None) -> Path | None:
    """The checkpoint's `tokenizer.model`; None where it has none, or it cannot be fetched."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder / MODEL_FILE if (folder / MODEL_FILE).is_file() else None
    try:
        found = cached_file(
            name_or_path,
            MODEL_FILE,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:
        return None
    return Path(found) if found else None
