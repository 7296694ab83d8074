"""Measurements of device memory: the interface, and its implementation for CUDA."""

from typing import Protocol

import torch


class DeviceMemory(Protocol):
    """Memory that this process uses and can use, in bytes."""

    def start(self) -> int:
        """Starts a new peak measurement and returns the bytes in use now."""

    def peak(self) -> int:
        """Returns the largest number of bytes in use since `start`."""

    def available(self) -> int:
        """Returns the total number of bytes that this process could use."""


class CudaMemory:
    """Memory of a CUDA device as torch's allocator counts it. Memory of other processes counts as not available."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> int:
        """Starts a new peak measurement and returns the bytes in use now."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        """Returns the largest number of bytes in use since `start`."""
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)

    def available(self) -> int:
        """Returns the free bytes plus the bytes that torch has reserved already."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device)
