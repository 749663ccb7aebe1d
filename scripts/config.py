"""python -m scripts.config [--write]    print every setting as YAML, or write configs/base.yaml."""

from __future__ import annotations

import argparse
from pathlib import Path

from train.config.help import base_yaml

BASE = Path("configs/base.yaml")


def main() -> int:
    """Print or write what train/config/ documents."""
    parser = argparse.ArgumentParser(prog="python -m scripts.config", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {BASE} instead of printing")
    if parser.parse_args().write:
        BASE.write_text(base_yaml())
        print(f"wrote {BASE}")
    else:
        print(base_yaml(), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
