"""The fast tokenizer that reads text exactly as a SentencePiece BPE model does.

What makes it exact, where transformers 5's own conversion is not:

- Merges are ranked by the score of the piece that they make, as SentencePiece ranks them, and not by its id. The runs
  of spaces of Llama-2 have low ids and the lowest score: words take their space first.
- Of equal scores SentencePiece takes the leftmost pair, so a run of spaces grows from its left end. Ranking the merge
  with the longer left half first does the same.
- The space before a text is put there by the normalizer, also before a text that begins with a space.

Not exact: user-defined pieces in a model that also puts a space before each text (after such a piece the fast tokenizer
puts another one). Llama-2 and Mistral have none; `scripts.tokenizer` finds such a difference and writes nothing.

SentencePiece: Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226; its `bpe_model.cc` for the order of merges.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing

from data.errors import UserError
from data.fidelity.compare import why_not_sentencepiece

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of a piece in SentencePiece's own file format
BPE = 2  # type of a model there
SPACE = "▁"


def read_model(model_file: Path) -> Any:
    """The SentencePiece model as its protocol buffer.

    Raises:
        UserError: it is not one, or of a kind that has no exact fast tokenizer here.
    """
    reason = why_not_sentencepiece(model_file)
    if reason:
        raise UserError(str(model_file), reason, "give a checkpoint that has a SentencePiece tokenizer.model")
    model = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    model.ParseFromString(model_file.read_bytes())
    if model.trainer_spec.model_type != BPE:
        found = "a SentencePiece model that is not BPE (unigram, as T5 has)"
        raise UserError(str(model_file), found, "only BPE models, as Llama and Mistral have, are made exact here")
    if model.trainer_spec.treat_whitespace_as_suffix or not model.normalizer_spec.escape_whitespaces:
        raise UserError(str(model_file), "its spaces are not written as a ▁ before the word", "use it as it is")
    return model


def build(model: Any, added: dict[int, AddedToken], first: str | None, last: str | None) -> Tokenizer:
    """The tokenizer.

    Args:
        model: of `read_model`.
        added: tokens beyond the pieces, or pieces with rules of their own, by id.
        first: the token put before each text (bos), or None.
        last: the token put after each text (eos), or None.

    Raises:
        UserError: an added token's id is taken, or leaves a gap.
    """
    pieces = list(model.pieces)
    vocabulary = {piece.piece: id for id, piece in enumerate(pieces)}
    unknown = next((piece.piece for piece in pieces if piece.type == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges(model),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    tokenizer.normalizer = _normalizer(model.normalizer_spec)
    tokenizer.decoder = _decoder(model.normalizer_spec.add_dummy_prefix)
    _add(tokenizer, _own_added_tokens(pieces) | added)
    if first or last:
        tokenizer.post_processor = _ends(tokenizer, first, last)
    return tokenizer


def merges(model: Any) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, in the order in which SentencePiece prefers them."""
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    pairs = [pair for piece in scores for pair in _halves(piece) if pair[0] in scores and pair[1] in scores]
    return sorted(pairs, key=lambda pair: (-scores[pair[0] + pair[1]], -len(pair[0])))


def _halves(piece: str) -> Iterator[tuple[str, str]]:
    return ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _decoder(dummy_prefix: bool) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if dummy_prefix else steps)


def _own_added_tokens(pieces: list[Any]) -> dict[int, AddedToken]:
    """Pieces that no merge makes: control tokens are never found in plain text, user-defined ones always."""
    kinds = {UNKNOWN: True, CONTROL: True, USER_DEFINED: False}
    return {
        id: AddedToken(piece.piece, special=kinds[piece.type], normalized=False)
        for id, piece in enumerate(pieces)
        if piece.type in kinds
    }


def _add(tokenizer: Tokenizer, added: dict[int, AddedToken]) -> None:
    """Add the tokens in the order of their ids, and see that each gets its own."""
    for id, token in sorted(added.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != id:
            found = f"{token.content!r} is added as {id}, and {tokenizer.token_to_id(token.content)} would be its id"
            raise UserError("added tokens", found, "mend added_tokens_decoder (ids without gaps, no piece renamed)")


def _ends(tokenizer: Tokenizer, first: str | None, last: str | None) -> TemplateProcessing:
    """What stands before and after every text, in a pair around each of the two."""

    def around(name: str, type_id: int) -> str:
        return " ".join(f"{token}:{type_id}" for token in (first, name, last) if token)

    special = {token: tokenizer.token_to_id(token) for token in (first, last) if token}
    return TemplateProcessing(
        single=around("$A", 0), pair=f"{around('$A', 0)} {around('$B', 1)}", special_tokens=list(special.items())
    )
