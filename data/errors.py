"""One clear message for whatever the user can mend: where, what was found, what to do."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable

from data.secrets import Guarded, redact


class UserError(Exception):
    """A mistake outside the program.

    Args:
        where: the file and line, config key or directory it was found in.
        found: what stands there.
        todo: the action that mends it.

    Attributes:
        exit_code: of a command that it ends.
    """

    exit_code = 2

    def __init__(self, where: str, found: str, todo: str) -> None:
        super().__init__(f"{where}: {found}\n  -> {todo}")
        self.where, self.found, self.todo = where, found, todo

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """It comes back from worker processes."""
        return type(self), (self.where, self.found, self.todo)


def disk_error(error: Exception) -> UserError | None:
    """The message for a failed write that only the user can mend; None for any other error."""
    if error.__cause__ is not None and isinstance(error.__cause__, Exception):
        return disk_error(error.__cause__)
    number = getattr(error, "errno", None)
    # Libraries in Rust (safetensors) raise errors of their own, with the system's words in them.
    if number in (errno.ENOSPC, errno.EDQUOT) or f"(os error {errno.ENOSPC})" in str(error):
        todo = "free some space and start again with --resume; what was complete is untouched"
        return UserError(_place(error), "the disk is full", todo)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        found = f"not permitted ({os.strerror(number)})"
        return UserError(_place(error), found, "choose a place you may write to")
    return None


def _place(error: Exception) -> str:
    return str(getattr(error, "filename", None) or "while writing")


def exits_on_user_error(main: Callable[[], int]) -> Callable[[], int]:
    """Wrap a command's `main`: what the user can mend goes to stderr, without a traceback; exit code 2.

    Anything else is a defect: its traceback goes there, exit code 1. No secret is in what is printed (data/secrets.py).
    """

    @functools.wraps(main)
    def command() -> int:
        with contextlib.redirect_stdout(Guarded(sys.stdout)), contextlib.redirect_stderr(Guarded(sys.stderr)):
            return _guarded(main)

    return command


def _guarded(main: Callable[[], int]) -> int:
    code = UserError.exit_code
    try:
        return main()
    except UserError as error:
        message, code = str(error), error.exit_code
    except KeyboardInterrupt:
        message = "interrupted"
    except Exception as error:
        known = disk_error(error)
        if known is None:
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
            return 1
        message = str(known)
    print(redact(f"error: {message}"), file=sys.stderr)
    return code
