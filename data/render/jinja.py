"""Text as it is written in a jinja template."""

from __future__ import annotations

import json


def quoted(text: str) -> str:
    """A jinja string literal; JSON's, but that characters beyond 16 bits stand as they are (jinja knows no pairs)."""
    return json.dumps(text, ensure_ascii=False)
