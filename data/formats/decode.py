"""Bytes become one JSON object, strictly: what two readers could understand differently is refused."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

from data.conversation import UnusableError
from data.formats.fields import named, short

_BOM = b"\xef\xbb\xbf"
_WANTED = "one JSON object"


def decode(content: bytes) -> dict[str, Any]:
    """The JSON object that `content` is; a byte order mark in front is skipped.

    Raises:
        UnusableError: (fault "json") the bytes are no UTF-8, no JSON, no object, or an object that has a key twice.
    """
    record = _load(_text(content))
    if not isinstance(record, dict):
        raise UnusableError(f"{_KINDS[type(record)]} ({short(record)})", _WANTED, fault="json")
    return record


_KINDS = {list: "a JSON array", str: "a JSON string", int: "a number", float: "a number"}
_KINDS |= {bool: "a JSON boolean", type(None): "a JSON null"}


def _text(content: bytes) -> str:
    try:
        return content.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        found = f"bytes that are not UTF-8 (at byte {error.start + 1})"
        raise UnusableError(found, "UTF-8 text", fault="json") from None


def _load(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        found = f"broken JSON ({error.msg}, at character {error.pos + 1})"
        raise UnusableError(found, _WANTED, fault="json") from None
    except RecursionError:
        raise UnusableError("JSON nested too deeply", _WANTED, fault="json") from None
    except ValueError:  # of int(), which takes only so many digits
        limit = sys.get_int_max_str_digits()
        raise UnusableError(f"a number of more than {limit} digits", "shorter numbers", fault="json") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = named(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))
        raise UnusableError(f"the key `{twice}` twice", "each key once", twice, "json")
    return record


def _refuse_constant(name: str) -> Any:
    raise UnusableError(f"`{name}`, which is no JSON", "null where there is no value", fault="json")


# Made once: json.loads with hooks makes one for every record.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)
