"""Readings of a device's memory, behind one small seam; and the host's memory, which training on a CPU keeps."""

import ctypes
from typing import Protocol

import torch

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


class DeviceMemory(Protocol):
    """What a process holds and can have, in bytes."""

    def start(self) -> int:
        """Begins a new peak; returns what is held now."""

    def peak(self) -> int:
        """The most that was held since `start`."""

    def available(self) -> int:
        """What this process could hold in all."""


class CudaMemory:
    """Of a CUDA device, as torch's allocator counts it; what other processes hold is not available."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> int:
        """Begins a new peak; returns what is held now."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        """The most that was held since `start`."""
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)

    def available(self) -> int:
        """What is free, and what torch has taken already."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device)
