"""accelerate launch -q -m train CONFIG [a.b=c ...] [--resume] [--dry-run]."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

import torch

from data.errors import UserError, exits_on_user_error
from data.prepare.recipe import Source
from data.read.inputs import is_hub_name
from train.allocator import keep_freed_memory
from train.config import Config
from train.config.help import help_text
from train.config.read import load_config, stage_configs
from train.determinism import without_such_kernel
from train.follow import Ending
from train.model.base import NotAtHandError, check_positions
from train.plan import Where, describe, estimate
from train.ranks.failure import told_once
from train.ranks.processes import require_one_config, start_processes
from train.ranks.pulse import pulse_of
from train.recipe import sources_of
from train.run.console import Board, quiet_libraries
from train.run.directory import config_yaml
from train.stages import run_whole
from train.stopping import EXIT_INTERRUPTED, StoppedError


@exits_on_user_error
@told_once
def main() -> int:
    """Read the arguments, then show or run the config."""
    arguments = _parser().parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    quiet_libraries()
    if arguments.dry_run:
        show(config)
        return 0
    keep_freed_memory()
    ending = _run(config, resume=arguments.resume)
    return EXIT_INTERRUPTED if ending is Ending.INTERRUPTED else 0


def _run(config: Config, resume: bool) -> Ending:
    minutes = config.train.stall_minutes
    try:
        with pulse_of(minutes) as pulse:
            pulse.waits("joining the other processes")
            accelerator = start_processes(minutes)
            require_one_config(accelerator, config_yaml(config))
            pulse.at("opening")
            return run_whole(config, accelerator, resume=resume, pulse=pulse)
    except KeyboardInterrupt:
        todo = "start again with --resume to continue from the newest checkpoint"
        raise StoppedError(str(config.run_dir), "interrupted", todo) from None
    except RuntimeError as error:
        raise without_such_kernel(error) or error from None


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
            plan = estimate(stage, model_config, Where(on_gpu=torch.cuda.is_available()))
            board.say(*describe(plan, spec))
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


class _Parser(argparse.ArgumentParser):
    """One whose mistakes are told like all others, by one process."""

    def error(self, message: str) -> NoReturn:
        raise UserError("the command line", message, "`python -m train --help` shows what it takes")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
