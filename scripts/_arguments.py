"""Kinds of command line arguments that several commands take; argparse shows what is wrong with one."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(least: float, kind: type = float, most: float = float("inf")) -> Callable[[str], float]:
    """A number within limits."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not within {least} to {most}")
        return value

    return number


def positive(text: str) -> int:
    """A count: 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def lengths(text: str) -> tuple[int, ...]:
    """Token counts, as 512,2048."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of lengths, such as 512,2048") from None
