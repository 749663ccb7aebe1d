"""Tokens, keys and passwords: what they look like, and a text without them.

None ever needs to be in a config, so one that is there is refused when it is read (train/config/read.py). With that the
resolved config, its copies in trackers and checkpoints, and the card are free of them by construction. What else could
carry one is a library's message, a name of a file, or a variable's value, and all of these pass one of four places:
    data/errors.py           a command's messages and tracebacks, and whatever it prints (`Guarded`)
    train/run/console.py     what a run says
    train/run/directory.py   the JSON files of a run directory
    export/card/card.py      the card
A record's text is data and is not touched: what looks like a key there is trained on, and shown, as it stands. Only the
secrets that are in use here (`known`) are masked in all that is printed.
"""

from __future__ import annotations

import json
import netrc
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

SHORTEST = 8  # characters: what is shorter would be found in ordinary text
DISTINCT = 16  # characters from which on a value of letters only, or of digits only, is no word or number of a text
COMMON = frozenset({"password", "passwort", "changeme", "disabled", "localhost", "undefined", "anonymous", "required"})

_SECRET_NAME = re.compile(
    r"""(?: (?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)token | secret | password | passwd | passphrase | _pass | _pwd
        | (?:key|store)pass | credentials? | (?:^|_)key | (?:api|access|account|private|secret)key | _key_id
        | connection_?string | webhook(?:_url)? )
        (?:_(?:pem|json|b64|base64))? (?:_?\d+)? $""",
    re.IGNORECASE | re.VERBOSE,
)
# Each marks with the group `keep` what stands before the secret and may be shown.
SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a Hugging Face token", re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}")),
    ("a GitHub token", re.compile(r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,})")),
    ("a GitLab token", re.compile(r"(?<![A-Za-z0-9])glpat-[\w-]{20,}")),
    # A run of letters and digits that no name of a file has, whatever stands before it.
    (
        "an API key",
        re.compile(r"(?<![A-Za-z0-9])sk-(?:[\w-]*[-_])?(?=[a-zA-Z]*\d)(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{20,}[\w-]*"),
    ),
    ("a Google API key", re.compile(r"(?<![A-Za-z0-9])AIza[\w-]{35}")),
    ("an AWS key", re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])")),
    ("a Slack token", re.compile(r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,}")),
    ("a JSON web token", re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}")),
    (
        "a private key",
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
    ),
    ("a password in a URL", re.compile(r"(?P<keep>[a-z]://)[^\s/:@\"'<>]*:[^\s/@\"'<>]+(?=@)")),
    (
        "a signed URL",
        re.compile(r"(?P<keep>[?&][\w.-]*(?:token|key|secret|password|signature|credential)=)[^\s&\"'<>]{8,}", re.I),
    ),
    ("a bearer token", re.compile(r"(?P<keep>\b(?:bearer|basic) )(?=\S*\d)[\w.~+/=-]{8,}", re.I)),
)


def is_secret_name(name: str) -> bool:
    """Whether a variable or a setting of this name holds a secret: `HF_TOKEN`, `api_key`, `MLFLOW_..._PASSWORD`."""
    return _SECRET_NAME.search(name) is not None


def known(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The secrets in use here, value -> where it is from: the environment, the hub's login, and netrc."""
    environ = os.environ if environ is None else environ
    found = {value: name for name, value in environ.items() if is_secret_name(name)}
    found |= {token: "the hub's token" for token in _hub_token(environ) if token not in found}
    found |= {password: "a password of netrc" for password in _netrc(environ) if password not in found}
    return {value.strip(): name for value, name in found.items() if _is_distinct(value.strip())}


def find(text: str) -> str | None:
    """What secret a text holds, in words; None where it holds none."""
    names = known()
    pattern = _pattern(tuple(names))
    match = pattern.search(text) if pattern else None
    if match:
        return f"the value of {_name_of(match[0], names)}"
    return next((what for what, shape in SHAPES if shape.search(text)), None)


def redact(text: str) -> str:
    """The text with every secret, known or told by its shape, replaced by what it is."""
    text = redact_known(text)
    for what, shape in SHAPES:
        text = shape.sub(lambda match, what=what: f"{match.groupdict().get('keep', '')}({what})", text)
    return text


def redact_known(text: str) -> str:
    """The text without the secrets that are in use here; what only looks like one stays."""
    names = known()
    pattern = _pattern(tuple(names))
    return pattern.sub(lambda match: f"({_name_of(match[0], names)})", text) if pattern else text


def redacted(content: Any) -> Any:
    """`redact` for every text in nested mappings and lists; keys and numbers stay."""
    if isinstance(content, str):
        return redact(content)
    if isinstance(content, dict):
        return {key: redacted(value) for key, value in content.items()}
    return [redacted(value) for value in content] if isinstance(content, list | tuple) else content


def secrets_in(settings: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of nested settings whose value holds a secret, dotted, with what it holds."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from secrets_in(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(settings, list | tuple):
        for number, value in enumerate(settings):
            yield from secrets_in(value, f"{prefix}.{number}")
    elif isinstance(settings, str) and (what := find(settings)):
        yield prefix, what


class Guarded:
    """A stream that shows everything but the secrets in use here; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without them; the number of characters that were given."""
        self._stream.write(redact_known(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """What was written goes out."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_distinct(value: str) -> bool:
    """Whether a value can be told from ordinary text, and is no file that holds the secret."""
    if len(value) < SHORTEST or value.lower() in COMMON or _is_file(value):
        return False
    return len(value) >= DISTINCT or not value.isdigit()


def _is_file(value: str) -> bool:
    """Whether it is the path of something that is there; a key may begin with "/" too."""
    try:
        return value.startswith(("/", "~", "./")) and Path(value).expanduser().exists()
    except (OSError, RuntimeError):  # too long for a name; the home of nobody
        return False


@lru_cache(maxsize=8)
def _pattern(values: tuple[str, ...]) -> re.Pattern[str] | None:
    """All of them, the longest first, as they stand, in JSON and in a URL."""
    spelt = {(form, _is_word(value)) for value in values for form in _forms(value)}
    parts = [
        rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])" if word else re.escape(form)
        for form, word in sorted(spelt, key=lambda one: (-len(one[0]), one[0]))
    ]
    return re.compile("|".join(parts)) if parts else None


def _forms(value: str) -> set[str]:
    return {value, json.dumps(value)[1:-1], quote(value, safe=""), quote(value)}


def _is_word(value: str) -> bool:
    """A short one of letters only could be a part of a word."""
    return value.isalpha() and len(value) < DISTINCT


def _name_of(found: str, names: Mapping[str, str]) -> str:
    return next(name for value, name in names.items() if found in _forms(value))


def _hub_token(environ: Mapping[str, str]) -> Iterator[str]:
    """The stored login; read here, for this must not import the hub's library."""
    cache = Path(environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(environ.get("HF_HOME") or cache / "huggingface")
    path = Path(environ.get("HF_TOKEN_PATH") or home / "token")
    try:
        yield path.expanduser().read_text().strip()
    except (OSError, ValueError, RuntimeError):
        return


def _netrc(environ: Mapping[str, str]) -> Iterator[str]:
    """Where wandb and others keep theirs."""
    path = Path(environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        stat = path.stat()
        yield from _passwords(str(path), stat.st_mtime_ns, stat.st_size)
    except (OSError, RuntimeError):
        return


@lru_cache(maxsize=4)
def _passwords(path: str, _mtime: int, _size: int) -> tuple[str, ...]:
    try:
        return tuple(password for _, _, password in netrc.netrc(path).hosts.values() if password)
    except (OSError, ValueError, netrc.NetrcParseError):
        return ()
