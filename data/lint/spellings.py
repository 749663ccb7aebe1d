"""The spellings that the lint looks for: refusals, labels of the prompt format, special tokens typed as text."""

from __future__ import annotations

import re

# In lower case with straight apostrophes; "i'm", "can't" and "don't" stand for their long forms too (`_pattern`).
# Phrases that a roleplay or a story uses of itself ("I'm sorry", "as an AI") are left out.
REFUSAL_PHRASES = (
    "as an ai language model",
    "as an ai assistant",
    "as an ai model",
    "as a large language model",
    "as a language model",
    "as a responsible ai",
    "as an artificial intelligence",
    "i'm just an ai",
    "i'm only an ai",
    "i'm an ai language model",
    "i'm an ai assistant",
    "i'm sorry, but as an ai",
    "i'm sorry, but i can't",
    "i'm sorry, i can't",
    "sorry, but i can't",
    "i apologize, but i can't",
    "i apologize, but as an ai",
    "i can't assist with",
    "i can't help with that",
    "i can't fulfill",
    "i can't comply with",
    "i can't provide assistance",
    "i'm not able to assist with",
    "i'm unable to assist",
    "i'm unable to fulfill",
    "i'm not programmed to",
    "i don't have personal opinions",
    "i don't have personal experiences",
    "i don't have the ability to",
    "my knowledge cutoff",
    "my training data only goes",
    "against my programming",
)
# Every phrase holds one of these: most responses hold none, and the expression never runs on them.
_ANCHORS = (
    *(" an ai", "responsible ai", "language model", "artificial intelligence", "i can't", "i cannot", "i can not"),
    *("able to assist", "able to fulfill", "not programmed", "have personal", "have the ability"),
    *("knowledge cutoff", "training data only", "my programming"),
)
# And begins with one of these: the long list is tried at few places.
_OPENING = r"\b(?=as an? |i |i'm |sorry, |my |against )"
_LONG_FORMS = {"i'm": "i(?:'m| am)", "can't": "(?:can't|cannot|can not)", "don't": "(?:don't|do not)"}

SPECIAL_TOKENS = (
    *("<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>"),
    *("<|eot_id|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<start_of_turn>", "<end_of_turn>"),
)
# Any other `<|name|>` is counted under one name, so that what is kept stays bounded.
OTHER_SPECIAL = "<|...|>"
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)) + r"|<\|[A-Za-z0-9_]{1,40}\|>")
_ROLE_LABEL = re.compile(r"\b(?:USER|ASSISTANT):")


def _pattern(phrase: str) -> str:
    words = [_LONG_FORMS.get(word, re.escape(word)) for word in phrase.split()]
    return "(" + " ".join(words) + r"\b)"


# Looked for at every word, so that overlapping phrases are all found; of those that start at one word, the first.
_REFUSAL = re.compile(_OPENING + "(?=" + "|".join(map(_pattern, REFUSAL_PHRASES)) + ")")


def refusal_phrases(response: str) -> list[str]:
    """Those of REFUSAL_PHRASES in a text, each once: whole words, in any case, either apostrophe, over a line's end."""
    folded = response.lower().replace("’", "'").replace("\n", " ")
    # A plain loop: a third of the time that any() takes over a generator.
    for anchor in _ANCHORS:
        if anchor in folded:
            break
    else:
        return []
    numbers = dict.fromkeys(match.lastindex or 0 for match in _REFUSAL.finditer(folded))
    return [REFUSAL_PHRASES[number - 1] for number in numbers]


def role_labels(response: str) -> list[str]:
    """`USER:` or `ASSISTANT:` in a response, each once: most likely a turn that was not told apart."""
    if "USER:" not in response and "ASSISTANT:" not in response:
        return []
    return list(dict.fromkeys(_ROLE_LABEL.findall(response)))


def special_tokens(texts: list[str]) -> list[str]:
    """What looks like a special token of some model in any of the texts, each once."""
    marked = [text for text in texts if "<" in text or "INST]" in text]
    if not marked:
        return []
    tokens = dict.fromkeys(token for text in marked for token in _SPECIAL.findall(text))
    return list(dict.fromkeys(token if token in SPECIAL_TOKENS else OTHER_SPECIAL for token in tokens))
