"""Settings of the host's memory allocator for a process that trains on the CPU."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Option numbers of mallopt in glibc's malloc.h."""

_MOST_FREE_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Makes this process keep the memory that CPU tensors free, for the next step. Without glibc it does nothing.

    Otherwise malloc returns large blocks to the kernel, which must clear every page again when the next step allocates
    as many. The peak memory of a run does not change.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _MOST_FREE_BYTES)
