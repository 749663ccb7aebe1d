"""python -m scripts.tokenizer MODEL --out DIR    the fast tokenizer that equals a checkpoint's SentencePiece model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data.errors import UserError, exits_on_user_error
from data.fidelity.checkpoint import WRITTEN, Checkpoint, open_checkpoint, write
from data.fidelity.compare import Fidelity, comparable, compare_all
from data.fidelity.texts import stress_texts
from data.tokens import Encoder
from evals.stdlib_text import documents
from export.files import made_aside
from train.run.console import quiet_libraries
from train.run.folders import replace_directory

CUT = 20_000  # characters: longer texts are compared in parts
EVERY = 8  # of the standard library's files, one in so many


@exits_on_user_error
def main() -> int:
    """Parse, build aside, compare before and after; 1, and nothing written, where the new one is not exact."""
    arguments = _parser().parse_args()
    quiet_libraries()
    require_replaceable(arguments.out)
    checkpoint = open_checkpoint(arguments.model)
    texts = _files(arguments.check) if arguments.check else _real_text()
    judge = Judge(sentencepiece.SentencePieceProcessor(model_file=str(checkpoint.model_file)), stress_texts(), texts)
    print(f"before: {_before(checkpoint, judge)}")
    for word in checkpoint.left_out:
        print(f"left out: {word!r}, which has no row in the embeddings")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with made_aside(arguments.out.with_name(f".{arguments.out.name}.partial")) as aside:
        write(checkpoint, aside)
        tokenizer = AutoTokenizer.from_pretrained(aside, trust_remote_code=False)
        found = judge.compare(tokenizer)
        print(f"after: {_told(tokenizer, found)}")
        if any(fidelity.differing for fidelity in found):
            print(f"not written: {arguments.out}, since it would not be exact either")
            return 1
        replace_directory(arguments.out, aside)
    print(f"written: {arguments.out}\n  -> to train with it, copy its files over those of {checkpoint.folder}")
    return 0


@dataclass(frozen=True)
class Judge:
    """SentencePiece itself, and the texts to ask it about.

    Attributes:
        stress: texts made to part tokenizers.
        real: texts that people wrote.
    """

    exact: sentencepiece.SentencePieceProcessor
    stress: Sequence[str]
    real: Sequence[str]

    def compare(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Fidelity, Fidelity]:
        """How the tokenizer does on the texts made to part it, and on real ones."""
        encoder = Encoder(tokenizer)
        stress, real = (comparable(tokenizer, self.exact, texts) for texts in (self.stress, self.real))
        return compare_all(encoder, self.exact, stress), compare_all(encoder, self.exact, real)


def require_replaceable(out: Path) -> None:
    """Refuse a directory that holds anything that this command does not write.

    Raises:
        UserError: it does.
    """
    if out.exists() and not out.is_dir():
        raise UserError(str(out), "a file", "name a directory with --out")
    others = sorted({path.name for path in out.iterdir()} - set(WRITTEN)) if out.is_dir() else []
    if others:
        raise UserError(str(out), f"holds {others[0]}, which would be lost", "name a new directory with --out")


def _before(checkpoint: Checkpoint, judge: Judge) -> str:
    """How the checkpoint's tokenizer does as transformers loads it."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        return _told(tokenizer, judge.compare(tokenizer))
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        return f"transformers cannot load it ({type(error).__name__})"


def _told(tokenizer: PreTrainedTokenizerBase, found: tuple[Fidelity, Fidelity]) -> str:
    """The tokenizer in one line, and what it reads differently."""
    encoder = Encoder(tokenizer)
    lines = [f"{len(tokenizer):,} tokens in the vocabulary, bos {encoder.bos_ids}, eos {encoder.eos_id}"]
    for name, fidelity in zip(("texts made to differ", "real texts"), found, strict=True):
        told = f"{fidelity.differing:,} of {fidelity.texts:,} differ ({fidelity.tokens:,} tokens compared)"
        lines += [f"  {name}: {told}", *(f"    {example}" for example in fidelity.examples)]
    return "\n".join(lines)


def _files(paths: Sequence[Path]) -> list[str]:
    """The texts of files, in parts.

    Raises:
        UserError: one is not there, or is not UTF-8.
    """
    try:
        return [part for path in paths for part in _parts(path.read_bytes().decode())]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("--check", f"cannot be read: {error}", "name text files in UTF-8") from None


def _real_text() -> list[str]:
    return [part for document in documents()[::EVERY] for part in _parts(document.text)]


def _parts(text: str) -> list[str]:
    return [text[start : start + CUT] for start in range(0, len(text), CUT)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.tokenizer", description=__doc__)
    parser.add_argument("model", type=Path, help="a checkpoint's directory, or its tokenizer.model")
    parser.add_argument(
        "--out", type=Path, required=True, help="the directory to write; replaced where it is such a one"
    )
    check = "text files to compare on, beside the built-in list (the standard library's source)"
    parser.add_argument("--check", type=Path, nargs="+", metavar="FILE", help=check)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
