"""config.json and the tokenizer's files as other programs read them, whichever transformers they have.

transformers 5 writes the rope as `rope_parameters` only; transformers 4 reads such a file as theta 10000 and no
scaling, silently. So both spellings are written, and both come from the one RopeSpec.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from data.render import Style, chat_template
from data.tokens import Encoder
from train.rope.spec import RopeSpec
from train.rope.spelling import legacy_rope_scaling, with_rope, written_theta

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def write_config(folder: Path, base: PretrainedConfig, spec: RopeSpec, dtype: str, *, own_head: bool = False) -> None:
    """Write config.json for `dtype` ("float16", ...) with the rope in the new and the legacy spelling.

    Args:
        own_head: the weights have a head of their own, whatever the base's embeddings are tied to.
    """
    with_rope(base, spec).save_pretrained(str(folder))
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    for stale in (
        "quantization_config",
        "rope_scaling",
        "_name_or_path",
        "_model_name_or_path",
        "_attn_implementation",
    ):
        config.pop(stale, None)
    config |= {"dtype": dtype, "torch_dtype": dtype, "rope_theta": written_theta(spec), "use_cache": True}
    if own_head:
        config["tie_word_embeddings"] = False
    legacy = legacy_rope_scaling(spec)
    if legacy:
        config["rope_scaling"] = legacy
        if legacy["type"] == "longrope":  # transformers 4 looks for the window here
            config["original_max_position_embeddings"] = spec.original_max_position_embeddings
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_generation_config(folder: Path, base: Path, end_ids: Sequence[int] = ()) -> None:
    """The base's generation_config.json, or a plain one; the tokens that were trained to end an answer end it."""
    settings = GenerationConfig.from_pretrained(str(base)) if (base / "generation_config.json").is_file() else None
    generation = settings or GenerationConfig()
    known = generation.eos_token_id
    ends = list(dict.fromkeys([*end_ids, *(known if isinstance(known, list) else [] if known is None else [known])]))
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    # transformers refuses to save sampling settings that are switched off, as many older checkpoints have them.
    generation.do_sample = generation.do_sample or any((generation.temperature, generation.top_p, generation.top_k))
    generation.save_pretrained(str(folder))


def write_tokenizer(
    folder: Path, base: Path, tokenizer: PreTrainedTokenizerBase, prompt_format: Style, max_length: int
) -> None:
    """The base's own tokenizer files, with the chat template of the prompt format that was trained."""
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    template = chat_template(prompt_format, with_bos=bool(Encoder(tokenizer).bos_ids))
    (folder / "chat_template.jinja").write_text(template)
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    settings |= {"chat_template": template, "model_max_length": max_length}
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
