"""The host's memory, which a process that trains on the CPU keeps from step to step."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""

_MOST_FREE_BYTES = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets this process keep the memory that tensors on the CPU free, for the next step; without glibc it does nothing.

    Large blocks are otherwise given back to the kernel, which must clear every page anew when the next step takes as
    many. The highest use of a run is the same.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _MOST_FREE_BYTES)
