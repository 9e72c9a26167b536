"""Keeping freed memory in the process."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to return no memory to the system; False where glibc's is not the allocator.

    A training step frees and allocates the same large tensors again and again. If their pages go back to the system in
    between, it pays for them every time: a step of 32,768 events took 280 to 490 ms, and 235 to 250 when they stayed.
    """
    if sys.platform != "linux":
        return False
    trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))
