"""Files to the hub, taken up again where an upload broke off: what is there already, with the same content, stays.

A token comes from HF_TOKEN or the hub library's own login and goes nowhere but to the hub: it is not kept, and whatever
the hub answers is shown without it.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile

from data.errors import UserError
from data.secrets import redact
from export.hub.publish import MAIN, Destination, Say, Upload

# Bytes sent in one commit (or one file, where it is larger): what an interruption can cost, where the hub's storage
# does not remember parts by itself.
COMMIT_BYTES = 5_000_000_000
ANY_TOKEN = re.compile(r"hf_[A-Za-z0-9_]{8,}|(?<=Bearer )\S+")
AGAIN = "start the same command again: what has arrived is not sent twice"


@dataclass(frozen=True)
class Sent:
    """What an upload came to: files sent, their bytes, and files that were there already."""

    files: int = 0
    size: int = 0
    kept: int = 0

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.files + other.files, self.size + other.size, self.kept + other.kept)


def require_token() -> str:
    """The token that the hub's library would use.

    Raises:
        UserError: there is none.
    """
    token = get_token()
    if not token:
        todo = "log in once with `hf auth login`, or set HF_TOKEN to a token that may write"
        raise UserError("HF_TOKEN", "no token for the hub", todo)
    return token


def deliver(
    destinations: Sequence[Destination], api: HfApi, *, private: bool, say: Say, commit_bytes: int = COMMIT_BYTES
) -> Sent:
    """Make the repositories and branches that are not there yet, and send what differs.

    Raises:
        UserError: the hub refuses or cannot be reached; what had arrived by then stays there.
    """
    sent = Sent()
    for repo in dict.fromkeys(destination.repo for destination in destinations):
        own = [destination for destination in destinations if destination.repo == repo]
        with explained(repo, api):
            api.create_repo(repo, private=private or None, exist_ok=True)
            _make_branches(repo, [d.branch for d in own if d.branch != MAIN], api)
            for destination in own:
                sent += _send(destination, api, say, commit_bytes)
    return sent


def _make_branches(repo: str, branches: Sequence[str], api: HfApi) -> None:
    """From the repository's first commit: a branch that began at today's main would hold the merged weights too."""
    there = {branch.name for branch in api.list_repo_refs(repo).branches}
    wanted = [branch for branch in branches if branch not in there]
    if wanted:
        commits = api.list_repo_commits(repo)
        for branch in wanted:
            api.create_branch(repo, branch=branch, revision=commits[-1].commit_id if commits else None, exist_ok=True)


def _send(destination: Destination, api: HfApi, say: Say, commit_bytes: int) -> Sent:
    repo, branch = destination.repo, destination.branch
    entries = api.list_repo_tree(repo, recursive=True, revision=branch)
    there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    todo = [file for file in destination.files if not is_same(file, there.get(file.path))]
    kept = len(destination.files) - len(todo)
    say(f"{repo} ({branch}): {len(todo)} files to send, {kept} there already")
    strangers = sorted(set(there) - {file.path for file in destination.files} - {".gitattributes"})
    if strangers:
        say(f"{repo} ({branch}): there, but not of this run, and left alone: {', '.join(strangers)}")
    for batch in batches(todo, commit_bytes):
        operations = [CommitOperationAdd(file.path, _opened(file.source)) for file in batch]
        message = f"Upload {batch[0].path}" + (f" and {len(batch) - 1} more" if len(batch) > 1 else "")
        with warnings.catch_warnings(record=True) as notices:  # what the hub thinks of the card's metadata
            api.create_commit(repo, operations, commit_message=message, revision=branch)
        for notice in notices:
            if issubclass(notice.category, UserWarning):
                say(f"{repo} ({branch}): {redacted(str(notice.message))}")
        say(f"{repo} ({branch}): sent {', '.join(file.path for file in batch)}")
    return Sent(len(todo), sum(file.size for file in todo), kept)


def batches(files: Iterable[Upload], limit: int) -> Iterator[list[Upload]]:
    """Files in groups of up to `limit` bytes (or one file), largest first: the card comes when all else is there."""
    group: list[Upload] = []
    for file in sorted(files, key=lambda f: -f.size):
        if group and sum(f.size for f in group) + file.size > limit:
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def is_same(file: Upload, there: RepoFile | None) -> bool:
    """Whether the hub has this content: by sha256 for large files, by git's own hash for small ones."""
    if there is None or there.size != file.size:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == file.sha256
    return there.blob_id == git_hash(file.source)


def git_hash(source: Path | bytes) -> str:
    """The name that git gives to a file's content."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _opened(source: Path | bytes) -> str | bytes:
    return source if isinstance(source, bytes) else str(source)


@contextmanager
def explained(repo: str, api: HfApi) -> Iterator[None]:
    """One clear message for whatever goes wrong on the way to the hub, with no token in it."""
    try:
        yield
    except Exception as error:
        raise _told(error, repo, api) from None


def _told(error: Exception, repo: str, api: HfApi) -> UserError:
    answer = next((e for e in _causes(error) if isinstance(e, HfHubHTTPError)), None)
    if answer is not None:
        status = answer.response.status_code
        said = redacted(answer.server_message or str(answer).strip().splitlines()[0])
        return UserError(repo, f"the hub refused ({status}): {said}", _todo(status, repo))
    if any(isinstance(e, OfflineModeIsEnabled) for e in _causes(error)):
        return UserError("HF_HUB_OFFLINE", "the hub may not be reached: offline mode is on", "unset HF_HUB_OFFLINE")
    deepest = list(_causes(error))[-1]
    said = redacted(f"{type(deepest).__name__}: {deepest}")
    return UserError(
        api.endpoint,
        f"the upload broke off ({said})",
        f"see that the network is up and the files are still there, then {AGAIN}",
    )


def _todo(status: int, repo: str) -> str:
    match status:
        case 401:
            return "log in again with `hf auth login`, or set HF_TOKEN to a valid token"
        case 403:
            return f"use a token with write permission for {repo.split('/')[0]}"
        case 404:
            return "see that the name is right, and that the token may write there"
        case 400 | 409 | 413:
            return f"mend what it says, then {AGAIN}"
        case _:
            return f"wait a little, then {AGAIN}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def redacted(text: str) -> str:
    """A text without the token in use, and without anything that looks like one or is another secret."""
    token = get_token()
    return redact(ANY_TOKEN.sub("(token)", text.replace(token, "(token)") if token else text))
