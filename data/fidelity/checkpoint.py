"""A checkpoint's tokenizer files: what they say beside the pieces, and the same said for the exact fast tokenizer.

Kept as the checkpoint has it: special and added tokens, whether bos and eos are put around a text, the chat template,
the longest text. No token gets an id beyond the embeddings' rows: one that a file names, and that has no row, is left
out with a note, since adding it would ask for a resize.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from data.errors import UserError
from data.fidelity.compare import MODEL_FILE
from data.fidelity.exact import build, read_model

SETTINGS, ADDED, SPECIAL = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
# Everything that `write` may write.
WRITTEN = ("tokenizer.json", MODEL_FILE, SETTINGS, ADDED, SPECIAL, "chat_template.jinja")

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_LISTED = ("additional_special_tokens", "extra_special_tokens")
# What a settings file says about where it was, or to the conversion that is no longer done.
_STALE = ("tokenizer_file", "vocab_file", "name_or_path", "special_tokens_map_file", "sp_model_kwargs", "auto_map")
_RULES = ("lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says about its tokenizer.

    Attributes:
        model_file: its SentencePiece model.
        settings: tokenizer_config.json as it will be written, without tokens that have no row.
        added: tokens with rules of their own, by id.
        left_out: tokens that are named somewhere and have no id, or none that the embeddings have a row for.
    """

    folder: Path
    model_file: Path
    model: Any
    settings: dict[str, Any]
    added: dict[int, AddedToken]
    left_out: tuple[str, ...]

    def tokenizer(self) -> Tokenizer:
        """The exact fast tokenizer."""
        first = self.settings["bos_token"] if self.settings["add_bos_token"] else None
        last = self.settings["eos_token"] if self.settings["add_eos_token"] else None
        return build(self.model, self.added, first, last)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's directory, or the directory around the `tokenizer.model` that is given.

    Raises:
        UserError: no SentencePiece BPE model, a broken file beside it, or no eos token.
    """
    folder, model_file = (path, path / MODEL_FILE) if path.is_dir() else (path.parent, path)
    model = read_model(model_file)
    pieces = {piece.piece: id for id, piece in enumerate(model.pieces)}
    settings = _defaults(model) | _read(folder / SPECIAL) | _read(folder / SETTINGS)
    named = {name: _content(settings.get(name)) for name in NAMED}
    added = _added(settings, _read(folder / ADDED), {word for word in named.values() if word})
    rows = _read(folder / "config.json").get("vocab_size") or max([len(pieces) - 1, *added]) + 1
    kept = {id: token for id, token in added.items() if id < rows}
    known = set(pieces) | {token.content for token in kept.values()}
    if named["eos_token"] not in known:
        raise UserError(str(folder), "no eos token", f"name one in {SETTINGS}")
    listed = [word for name in _LISTED for word in _words(settings.get(name))]
    wanted = [*named.values(), *listed, *(token.content for token in added.values())]
    left_out = tuple(dict.fromkeys(word for word in wanted if word and word not in known))
    for word in filter(None, named.values()):
        if word in pieces:
            kept.setdefault(pieces[word], _special(word))
    return Checkpoint(folder, model_file, model, _settings(settings, named, known, kept), kept, left_out)


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the exact tokenizer into an empty directory, with the files that other programs read."""
    checkpoint.tokenizer().save(str(folder / "tokenizer.json"))
    shutil.copyfile(checkpoint.model_file, folder / MODEL_FILE)
    _write(folder / SETTINGS, checkpoint.settings)
    if (checkpoint.folder / SPECIAL).is_file():
        _write(folder / SPECIAL, {name: checkpoint.settings[name] for name in NAMED if checkpoint.settings.get(name)})
    if (checkpoint.folder / ADDED).is_file():
        own = len(checkpoint.model.pieces)
        _write(folder / ADDED, {token.content: id for id, token in checkpoint.added.items() if id >= own})
    template = checkpoint.folder / "chat_template.jinja"
    if template.is_file():
        shutil.copyfile(template, folder / template.name)


def _defaults(model: Any) -> dict[str, Any]:
    """What holds where the checkpoint says nothing: the model's own bos, eos and unk; bos in front, no eos behind."""
    spec, pieces = model.trainer_spec, model.pieces
    ids = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "unk_token": spec.unk_id}
    own = {name: pieces[id].piece for name, id in ids.items() if 0 <= id < len(pieces)}
    return {**own, "clean_up_tokenization_spaces": False}


def _added(settings: dict[str, Any], listed: dict[str, Any], special: set[str]) -> dict[int, AddedToken]:
    """Added tokens by id; never "normalized": the tokenizer would look for such a one with a ▁ in front."""
    added = {
        int(id): AddedToken(word, special=word in special, normalized=False)
        for word, id in listed.items()
        if isinstance(id, int)
    }
    for id, rules in settings.get("added_tokens_decoder", {}).items():
        word = rules["content"]
        kept = {name: bool(rules.get(name)) for name in _RULES}
        marked = bool(rules.get("special")) or word in special
        added[int(id)] = AddedToken(word, special=marked, normalized=False, **kept)
    return added


def _special(word: str) -> AddedToken:
    return AddedToken(word, special=True, normalized=False)


def _settings(
    settings: dict[str, Any], named: dict[str, str | None], known: set[str], added: dict[int, AddedToken]
) -> dict[str, Any]:
    """tokenizer_config.json: as it was, for the class that takes tokenizer.json as it is."""
    lists = {name: _only(settings[name], known) for name in _LISTED if settings.get(name)}
    tokens = {name: word if word in known else None for name, word in named.items() if word}
    bos = settings.get("add_bos_token")
    ends = {"add_bos_token": bool(tokens.get("bos_token")) if bos is None else bos}
    ends["add_eos_token"] = bool(settings.get("add_eos_token"))
    changed = {**tokens, **lists, **ends, "tokenizer_class": "PreTrainedTokenizerFast"}
    changed["added_tokens_decoder"] = {str(id): _fields(token) for id, token in sorted(added.items())}
    return {name: value for name, value in settings.items() if name not in _STALE} | changed


def _fields(token: AddedToken) -> dict[str, Any]:
    return {name: getattr(token, name) for name in ("content", *_RULES, "normalized", "special")}


def _only(words: Any, known: set[str]) -> Any:
    """A list or a mapping of tokens, without those that are not known."""
    if isinstance(words, dict):
        return {name: word for name, word in words.items() if _content(word) in known}
    return [word for word in words if _content(word) in known]


def _words(listed: Any) -> Iterable[str]:
    values = listed.values() if isinstance(listed, dict) else listed or ()
    return (word for word in map(_content, values) if word)


def _content(token: Any) -> str | None:
    """A token's text, however the file writes the token."""
    return token.get("content") if isinstance(token, dict) else token


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(str(path), f"is not JSON ({error})", "mend the checkpoint's file, or remove it") from None
    if not isinstance(content, dict):
        raise UserError(str(path), "does not hold a JSON object", "mend the checkpoint's file, or remove it")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
