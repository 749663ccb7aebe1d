"""Keep freed memory in the process instead of handing it back to the kernel after every large tensor."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to serve tensors below 1 GiB from memory that it keeps; False where this is not glibc.

    By default each large CPU tensor is a fresh mapping whose pages the kernel must clear again at first touch. A
    training step makes and drops the same few thousand tensors every time.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))
