"""python -m scripts: list the commands, each with its first line."""

from __future__ import annotations

import ast
from pathlib import Path


def main() -> int:
    """Print every command with what it does, read from the files without importing them."""
    print("accelerate launch -q -m train CONFIG    train (python -m train --help lists every setting)")
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        print(docstring.splitlines()[0])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
