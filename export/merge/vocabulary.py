"""The vocabulary as every reader counts it: rows of the embeddings, ids of the tokenizer, and which ids end a text.

Rows beyond the tokenizer's last id (many bases are padded to a multiple of 64) do no harm in transformers and vLLM.
llama.cpp names them [PAD32000] and so on, but refuses the file where a SentencePiece tokenizer came without its
tokenizer.model: `--trim-vocab` is for that. Ids beyond the rows crash every reader.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase

from data.errors import UserError

_SPECIAL = ("bos", "eos", "pad", "unk")
_TOKEN_FIELDS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


@dataclass(frozen=True)
class Vocabulary:
    """How the merged model counts its tokens.

    Attributes:
        rows: of the embeddings and the head, and `vocab_size` in config.json.
        tokens: the tokenizer's last id, plus one.
        trimmed: rows of the base that were left out.
        bos, eos, pad: ids; a tokenizer without a pad token pads with eos.
    """

    rows: int
    tokens: int
    trimmed: int
    bos: int | None
    eos: int
    pad: int


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, base_rows: int, where: str, *, trim: bool) -> Vocabulary:
    """The vocabulary of a merge onto a base with embeddings of `base_rows` rows.

    Raises:
        UserError: the tokenizer has ids that the embeddings have no row for.
    """
    ids = tokenizer.get_vocab()
    last = max(ids, key=lambda token: ids[token])
    tokens = ids[last] + 1
    if tokens > base_rows:
        found = f"its tokenizer has {tokens} tokens, up to {last!r}, and its embeddings {base_rows} rows"
        todo = "remove the tokens beyond them from the base's tokenizer files; no row of them was ever trained"
        raise UserError(where, found, todo)
    rows = tokens if trim else base_rows
    bos, eos, pad = (None if token is None else ids[str(token)] for token in _tokens(tokenizer, "bos", "eos", "pad"))
    assert eos is not None  # load_tokenizer refuses one without
    return Vocabulary(rows, tokens, base_rows - rows, bos, eos, eos if pad is None else pad)


def write_vocabulary(folder: Path, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the config files of a model's folder, and its tokenizer's, agree on it."""
    ids = {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos, "pad_token_id": vocabulary.pad}
    _change(folder / "config.json", lambda config: config | ids | {"vocab_size": vocabulary.rows})
    _change(folder / "generation_config.json", lambda config: config | ids | _other_stops(config, vocabulary))
    names = dict(zip([f"{kind}_token" for kind in _SPECIAL], _tokens(tokenizer, *_SPECIAL), strict=True))
    names["pad_token"] = names["pad_token"] or names["eos_token"]
    _change(folder / "tokenizer_config.json", lambda settings: _tokenizer_settings(settings, names, tokenizer, folder))
    _change(folder / "special_tokens_map.json", lambda settings: settings | _renamed(settings, names))


def _tokens(tokenizer: PreTrainedTokenizerBase, *kinds: str) -> list[str | None]:
    return [getattr(tokenizer, f"{kind}_token") for kind in kinds]


def _other_stops(generation: dict[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """What else the base stops at, after the eos that was trained.

    config.json gets the one only: a list there is passed over by llama.cpp's converter.
    """
    theirs = generation.get("eos_token_id")
    others = [token for token in (theirs if isinstance(theirs, list) else []) if token != vocabulary.eos]
    return {"eos_token_id": [vocabulary.eos, *others]} if others else {}


def _tokenizer_settings(
    settings: dict[str, Any], names: dict[str, str | None], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> dict[str, Any]:
    settings = settings | _renamed(settings, names)
    if settings.get("tokenizer_class") == "TokenizersBackend":  # transformers 4 knows the same class by this name
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if (folder / "tokenizer.model").is_file() and "added_tokens_decoder" not in settings:
        # That file does not know the tokens added to it; without this llama.cpp calls them [PAD32000].
        added: dict[int, AddedToken] = tokenizer.added_tokens_decoder
        settings["added_tokens_decoder"] = {str(id_): _fields(token) for id_, token in added.items()}
    return settings


def _fields(token: AddedToken) -> dict[str, Any]:
    return {
        name: getattr(token, name) for name in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    }


def _renamed(settings: dict[str, Any], names: dict[str, str | None]) -> dict[str, str | None]:
    """The special tokens that the file does not name, or names otherwise."""
    return {key: name for key, name in names.items() if name is not None and _content(settings.get(key)) != name}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _change(path: Path, change: Any) -> None:
    if path.is_file():
        settings = change(json.loads(path.read_text()))
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
