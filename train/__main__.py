"""accelerate launch -q -m train CONFIG [a.b=c ...] [--resume] [--dry-run]."""

from __future__ import annotations

import argparse
from pathlib import Path

from data.errors import UserError, exits_on_user_error
from data.prepare.recipe import Source
from data.read.inputs import is_hub_name
from train.allocator import keep_freed_memory
from train.config import Config
from train.config.help import help_text
from train.config.read import load_config, stage_configs
from train.follow import Ending
from train.model.base import NotAtHandError, check_positions
from train.plan import describe, estimate
from train.ranks.processes import start_processes
from train.recipe import sources_of
from train.run.console import Board, quiet_libraries
from train.run.directory import config_yaml
from train.stages import run_whole

# The conventional EX_TEMPFAIL: saved before the end; the same command with --resume goes on.
EXIT_INTERRUPTED = 75


@exits_on_user_error
def main() -> int:
    """Read the arguments, then show or run the config."""
    arguments = _parser().parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    quiet_libraries()
    if arguments.dry_run:
        show(config)
    else:
        keep_freed_memory()
        try:
            ending = run_whole(config, start_processes(), resume=arguments.resume)
        except KeyboardInterrupt:
            todo = "start again with --resume to continue from the newest checkpoint"
            raise UserError(str(config.run_dir), "interrupted", todo) from None
        return EXIT_INTERRUPTED if ending is Ending.INTERRUPTED else 0
    return 0


def show(config: Config) -> None:
    """Print the resolved config, and the plan where the model is at hand."""
    board = Board(visible=True)
    print(config_yaml(config))
    for stage in stage_configs(config) or [config]:
        if stage is not config:
            board.say(f"stage {stage.run_dir.name}:")
        for source in sources_of(stage.data):
            _warn_if_missing(source, board)
        try:
            model_config, spec = check_positions(stage, offline=True)
            board.say(*describe(estimate(stage, model_config), spec))
        except NotAtHandError as error:
            board.warn(f"{error.where} is not on this machine yet: memory and rope cannot be planned")
    board.say("the config is valid; nothing was run (--dry-run)")


def _warn_if_missing(source: Source, board: Board) -> None:
    """A plan may be made before its data; a dataset on the hub is not fetched for a plan."""
    if is_hub_name(source.path):
        return
    try:
        source.inputs()
    except UserError as error:
        board.warn(f"{error.where}: {error.found} (yet)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="accelerate launch -q -m train",
        description="Train a QLoRA adapter from one YAML file.",
        epilog="settings (a.b=c on the command line, or nested in the YAML file):\n" + help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="a YAML file, such as configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that take precedence")
    parser.add_argument("--resume", action="store_true", help="continue from the newest complete checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="resolve, validate and print the config, then exit")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
