"""Readings of a device's memory, behind one small seam."""

from typing import Protocol

import torch


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
