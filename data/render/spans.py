"""What a rendered document is made of: pieces of text and control tokens, each trained or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Control tokens by their role; the tokenizer says which they are, and whether documents begin with one at all.
BOS: Final = "bos"
EOS: Final = "eos"


@dataclass(frozen=True)
class Span:
    """A piece of a document.

    Attributes:
        text: the characters; of a control token BOS, EOS or the token as it is spelled, such as `<|im_start|>`.
        trained: whether its tokens count in the loss.
        control: whether it is a control token. Text never becomes one, whatever it spells.
    """

    text: str
    trained: bool
    control: bool = False


BEGIN: Final = Span(BOS, trained=False, control=True)
END: Final = Span(EOS, trained=True, control=True)
