"""python -m scripts.chat RUN    talk to a run (merged, or its adapter) in the prompt format it was trained in."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.conversation import Turn
from data.errors import UserError, exits_on_user_error
from evals.generate import Sampling, stream_reply
from evals.load import Loaded, load
from scripts._arguments import at_least
from train.run.console import quiet_libraries


@exits_on_user_error
def main() -> int:
    """Answer one --prompt, or every line that is typed until an empty one."""
    arguments = _parser().parse_args()
    quiet_libraries()
    sampling = Sampling(arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.repetition_penalty)
    loaded = load(arguments.run, adapter=arguments.adapter)
    stops = (*loaded.prompt_format.stops, *(f"{name}:" for name in arguments.stop))
    if arguments.prompt is not None:
        if not arguments.prompt.strip():
            raise UserError("--prompt", "empty", "give it the text to answer")
        _answer(loaded, [], arguments.prompt, arguments.system, stops, sampling)
        return 0
    print(f"{loaded.what}; an empty line ends the conversation")
    converse(loaded, arguments.system, stops, sampling)
    return 0


def converse(loaded: Loaded, system: str | None, stops: Sequence[str], sampling: Sampling) -> None:
    """Read prompts from standard input and answer each with all that was said before."""
    history: list[Turn] = []
    while prompt := _read_prompt():
        answer = _answer(loaded, history, prompt, system, stops, sampling)
        if answer:
            history.append(Turn(prompt, answer))


def _answer(
    loaded: Loaded, history: Sequence[Turn], prompt: str, system: str | None, stops: Sequence[str], sampling: Sampling
) -> str:
    answer = ""
    for piece in stream_reply(loaded, history, prompt, system, stops, sampling):
        print(piece, end="", flush=True)
        answer += piece
    print()
    return answer


def _read_prompt() -> str:
    try:
        return input("USER: " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.chat", description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory, or a merged model's")
    parser.add_argument("--adapter", action="store_true", help="use the base and the adapter, not the merged model")
    parser.add_argument("--prompt", help="answer this and exit")
    parser.add_argument("--system", help="system prompt (default: the format's own)")
    parser.add_argument("--stop", action="append", default=[], metavar="NAME", help="also stop at `NAME:` (repeatable)")
    parser.add_argument("--max-new-tokens", type=at_least(1, int), default=256)
    parser.add_argument("--temperature", type=at_least(0), default=0.0, help="0 takes the likeliest token")
    parser.add_argument("--top-p", type=at_least(0, most=1), default=0.95, help="share of probability to choose from")
    parser.add_argument("--repetition-penalty", type=at_least(1), default=1.0, help="1 is none")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
