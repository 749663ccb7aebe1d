"""python -m scripts.card RUN    write the model card, README.md, from what was measured; and say what is missing."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id
from rich.console import Console

from data.errors import UserError, exits_on_user_error
from export.card.card import write_card
from export.card.facts import Options
from export.card.gaps import missing, warnings
from train.run.console import quiet_libraries


@exits_on_user_error
def main() -> int:
    """Write the card, and print where it is and what it could not say."""
    arguments = _parser().parse_args()
    quiet_libraries()
    console = Console(highlight=False, soft_wrap=True)
    facts, path = write_card(arguments.run, _options(arguments), arguments.output)
    for warning in warnings(facts):
        console.print(warning.replace("**", ""), markup=False)
    gaps = missing(facts)
    console.print(f"written: {path}", markup=False)
    if gaps:
        console.print("what is missing from it:")
        console.print(*(f"  - {gap}" for gap in gaps), sep="\n", markup=False)
    else:
        console.print("nothing is missing from it")
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    """What the author states, refused where the hub would refuse it."""
    for option, name in [("--base-model", arguments.base_model), *(("--dataset", d) for d in arguments.dataset)]:
        if name is not None:
            _require_hub_name(option, name)
    for code in arguments.language:
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", code):
            raise UserError("--language", f"{code!r} is no code of a language", "give two or three letters, such as en")
    return Options(
        base_model=arguments.base_model,
        base_license=arguments.base_license,
        data_license=arguments.data_license,
        languages=tuple(arguments.language),
        datasets=tuple(arguments.dataset),
        author=arguments.author,
    )


def _require_hub_name(option: str, name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        found = f"{name!r} is no name on the hub"
        raise UserError(option, found, "give it as it is there, such as meta-llama/Llama-2-7b-hf") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.card", description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run directory")
    parser.add_argument("--output", type=Path, help="write it elsewhere (default: README.md in the run)")
    parser.add_argument("--base-model", help="the base's name on the hub")
    parser.add_argument("--base-license", help="such as llama2 (default: as the base's own card says)")
    parser.add_argument("--data-license", help="such as cc-by-nc-4.0")
    parser.add_argument("--language", action="append", default=[], help="code, such as en; may be repeated")
    parser.add_argument("--dataset", action="append", default=[], help="the data's name on the hub; may be repeated")
    parser.add_argument("--author", help="who made the model")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
