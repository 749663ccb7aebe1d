"""One clear message for whatever the user can mend: where, what was found, what to do."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake outside the program.

    Args:
        where: the file and line, config key or directory it was found in.
        found: what stands there.
        todo: the action that mends it.
    """

    def __init__(self, where: str, found: str, todo: str) -> None:
        super().__init__(f"{where}: {found}\n  -> {todo}")
        self.where, self.found, self.todo = where, found, todo


def disk_error(error: OSError) -> UserError | None:
    """The message for a failed write that only the user can mend; None for any other OSError."""
    where = str(error.filename or "while writing")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        todo = "free some space and start again with --resume; what was complete is untouched"
        return UserError(where, "the disk is full", todo)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(where, f"not permitted ({error.strerror})", "choose a place you may write to")
    return None


def exits_on_user_error(main: Callable[[], int]) -> Callable[[], int]:
    """Wrap a command's `main`: what the user can mend goes to stderr, without a traceback; exit code 2."""

    @functools.wraps(main)
    def command() -> int:
        try:
            return main()
        except UserError as error:
            message = str(error)
        except OSError as error:
            known = disk_error(error)
            if known is None:
                raise
            message = str(known)
        except KeyboardInterrupt:
            message = "interrupted\n  -> start again with --resume to continue from the newest checkpoint"
        print(f"error: {message}", file=sys.stderr)
        return 2

    return command
