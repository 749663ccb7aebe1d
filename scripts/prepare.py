"""python -m scripts.prepare CONFIG [a.b=c ...]    what a config's data will teach, without a model."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from data.conversation import Conversation
from data.errors import UserError, exits_on_user_error
from data.lint.contamination import Contamination, contamination
from data.lint.duplicates import NearDuplicates, near_duplicates
from data.lint.evaluations import read_evaluations
from data.prepare.make import conversations
from data.prepare.recipe import Source
from data.report.fate import Fates
from data.report.picture import draw_report
from data.report.show import shown
from data.report.tell import everything
from data.tokens import Encoder
from scripts._arguments import at_least, positive
from train.config import Config
from train.config.read import load_config, stage_configs
from train.model.base import NotAtHandError, load_model_config, load_tokenizer
from train.model.tokenizer_check import tell_tokenizer
from train.recipe import open_data, sources_of, spec_of
from train.run.console import Board, quiet_libraries
from train.run.directory import Run


@exits_on_user_error
def main() -> int:
    """Prepare the data of a config, or of each of its stages; or show records of it."""
    parser = _parser()
    arguments = parser.parse_intermixed_args()
    if arguments.key is not None and arguments.show is None:
        parser.error("--key needs --show")
    quiet_libraries()
    config = load_config(arguments.config, arguments.overrides)
    board = Board(visible=True)
    for stage in stage_configs(config) or [config]:
        if stage.run_dir != config.run_dir and not arguments.json:
            board.say(f"stage {stage.run_dir.name}:")
        encoder = Encoder(load_tokenizer(stage.model.name_or_path, stage.model.revision))
        if arguments.show is not None:
            show(stage, encoder, arguments)
        else:
            prepare(stage, encoder, arguments, board)
    return 0


def show(config: Config, encoder: Encoder, arguments: argparse.Namespace) -> None:
    """Print records as they will be trained.

    Raises:
        UserError: no record has the key.
    """
    spec = spec_of(config, encoder)
    fates = Fates(spec, encoder, config.data.cache_dir or Run(config.run_dir).cache)
    records = _wanted(spec.sources, arguments.key)
    console, found = Console(highlight=False), False
    for one in shown(records, spec.recipe, encoder, fates, arguments.show):
        found = True
        if arguments.json:
            print(json.dumps(one.to_json(), ensure_ascii=False))
        else:
            console.print(one.to_text(colour=console.color_system is not None), "\n", soft_wrap=True)
    if not found:
        what = f"no record with the key {arguments.key}" if arguments.key else "no record can be read"
        raise UserError(str(arguments.config), what, "`--show 5` prints the first ones with their keys")


def _wanted(sources: Sequence[Source], key: str | None) -> Iterator[Conversation]:
    records = conversations(sources)
    return records if key is None else (record for record in records if record.key.startswith(key))


def prepare(config: Config, encoder: Encoder, arguments: argparse.Namespace, board: Board) -> None:
    """Run the data path, and print and save its accounting."""
    run = Run(config.run_dir)
    dataset = open_data(config, encoder, run.cache, board.say)
    report = dataset.report(_window(config))
    records = partial(conversations, sources_of(config.data))
    board.say(*everything(report))
    found = _looked_at(records, arguments)
    for look in found.values():
        board.say(*look.lines())
    tell_tokenizer(config, encoder, records(), board.say, board.warn)
    if run.config.is_file():
        board.say(f"nothing saved: the run in {run.path} has begun, and its data.json says with what")
        return
    run.write_json("data.json", report.to_json() | {name: look.to_json() for name, look in found.items()})
    draw_report(report, run.path / "data.png")
    shutil.copyfile(report.rejected_file, run.path / "rejected.jsonl")
    board.say(f"saved: data.json, data.png and rejected.jsonl in {run.path}")


def _looked_at(
    records: Callable[[], Iterator[Conversation]], arguments: argparse.Namespace
) -> dict[str, NearDuplicates | Contamination]:
    """What takes another pass over the records."""
    found: dict[str, NearDuplicates | Contamination] = {}
    if not arguments.no_near_duplicates:
        found["near_duplicates"] = near_duplicates(records(), threshold=arguments.similarity)
    if arguments.contamination:
        evaluations = read_evaluations(arguments.contamination)
        found["contamination"] = contamination(records(), evaluations, arguments.ngram)
    return found


def _window(config: Config) -> int | None:
    """The base model's original window, where its config is at hand."""
    try:
        _, spec = load_model_config(config.model.model_copy(update={"allow_beyond_window": True}))
    except NotAtHandError:
        return None
    return spec.original_max_position_embeddings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare", description=__doc__)
    parser.add_argument("config", type=Path, help="a YAML file, such as configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that take precedence")
    parser.add_argument("--show", type=positive, metavar="N", help="print N records as they will be trained, and exit")
    parser.add_argument("--key", help="with --show: the record with this key (or one that begins so)")
    parser.add_argument("--json", action="store_true", help="with --show: one JSON object a document")
    parser.add_argument("--no-near-duplicates", action="store_true", help="do not look for near duplicates")
    parser.add_argument("--similarity", type=at_least(0.3, most=1), default=0.8, help="of near duplicates (0.8)")
    texts = "look for these evaluation texts (.txt, .jsonl) in the records"
    parser.add_argument("--contamination", nargs="+", type=Path, metavar="FILE", help=texts)
    parser.add_argument("--ngram", type=positive, default=13, help="words in a row that count as contamination (13)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
