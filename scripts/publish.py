"""python -m scripts.publish RUN --repo USER/NAME    show what would go to the hub; with --really, send it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi
from rich.console import Console

from data.errors import exits_on_user_error
from export.card.tables import gigabytes
from export.hub.publish import Destination, plan
from export.hub.upload import deliver, require_token
from train.run.console import quiet_libraries


@exits_on_user_error
def main() -> int:
    """Check and list everything, then (if asked) upload it."""
    arguments = _parser().parse_args()
    quiet_libraries()
    # Its notices repeat what a server answers, and its bars would hide our lines.
    huggingface_hub.logging.set_verbosity_error()
    huggingface_hub.utils.disable_progress_bars()
    console = Console(highlight=False, soft_wrap=True)
    say = partial(console.print, markup=False)
    if arguments.really:
        require_token()
    destinations = plan(arguments.run, arguments.repo, arguments.gguf_repo, force=arguments.force, say=say)
    say("\n".join(listed(destinations)))
    if not arguments.really:
        say("nothing was sent: this was a dry run; add --really to send it")
        return 0
    api = HfApi()
    sent = deliver(destinations, api, private=arguments.private, say=say)
    say(f"done: {sent.files} files sent ({gigabytes(sent.size)}), {sent.kept} were there already")
    for repo in dict.fromkeys(destination.repo for destination in destinations):
        say(f"  {api.endpoint}/{repo}")
    return 0


def listed(destinations: Sequence[Destination]) -> list[str]:
    """Every file under the repository and branch it goes to, and the sums."""
    lines: list[str] = []
    for destination in destinations:
        count, size = len(destination.files), gigabytes(destination.size)
        lines.append(f"{destination.repo}, branch {destination.branch}: {count} files, {size}")
        width = max(len(file.path) for file in destination.files)
        lines += [f"  {file.path:<{width}}  {gigabytes(file.size):>10}" for file in destination.files]
    files = sum(len(destination.files) for destination in destinations)
    total = gigabytes(sum(destination.size for destination in destinations))
    return [*lines, f"in all {files} files, {total}, to {len(destinations)} branches"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.publish", description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory with a merged model and a card")
    parser.add_argument("--repo", required=True, help="for the merged model and, in branches, GPTQ and AWQ variants")
    parser.add_argument("--gguf-repo", help="for the GGUF files (default: the same name with -GGUF)")
    parser.add_argument(
        "--really", action="store_true", help="send it; the token is HF_TOKEN or that of `hf auth login`"
    )
    parser.add_argument("--private", action="store_true", help="a repository that is made now is private")
    parser.add_argument("--force", action="store_true", help="also what was not verified; its card says so")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
