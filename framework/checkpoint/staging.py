"""Copies a checkpoint's tensors to host memory, so that a thread can write them while training continues."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from framework.errors import CheckpointError
from framework.optim.shards import local


class Staging:
    """Host buffers for this rank's tensors. The first copy allocates them, and each later copy overwrites them.

    Only the local part of a DTensor is copied, for any mesh and placements. Each copy owns its storage, because torch's
    checkpoint writer copies views again.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def copy(
        self, tensors: Mapping[str, Tensor], after: Mapping[torch.device, torch.cuda.Event] | None = None
    ) -> dict[str, Tensor]:
        """Copies all tensors to the host. It may run in any thread. Afterwards, the originals may change.

        Each GPU copies on a separate stream, in parallel with its computation.

        Args:
            tensors: Tensors by key: DTensors or plain tensors, on any device. They must not change during the copy.
            after: Result of `work_so_far` from the thread that computed the tensors; None if it is the current thread.

        Returns:
            Host tensors of the same shape, dtype and placements. The next call overwrites them.

        Raises:
            CheckpointError: The copy failed on the host or the device, for example for lack of memory.
        """
        after = work_so_far(tensors) if after is None else after
        try:
            for device, event in after.items():
                if device not in self._streams:
                    self._streams[device] = torch.cuda.Stream(device)
                self._streams[device].wait_event(event)
            copies = {key: self._copy(key, tensor) for key, tensor in tensors.items()}
            for device in after:
                self._streams[device].synchronize()
        except (MemoryError, RuntimeError) as error:
            raise CheckpointError(
                f"Weights and optimizer state could not be copied to host memory ({type(error).__name__}: {error}). "
                "Complete checkpoints are intact. Give the host more memory, or write checkpoints without a copy: "
                "trainer.checkpoint_async=false."
            ) from error
        return copies

    def _copy(self, key: str, tensor: Tensor) -> Tensor:
        part = local(tensor)
        with self._copy_stream(part.device):
            buffer = self._buffer(key, part)
            buffer.copy_(part, non_blocking=True)
        # DTensor.from_local would move the copy to the device of the mesh.
        return DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer

    def _buffer(self, key: str, part: Tensor) -> Tensor:
        """Returns the host buffer of a key. It is pinned for GPU tensors, so that their copies run asynchronously."""
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != part.shape or buffer.dtype != part.dtype:
            buffer = torch.empty_like(part, device="cpu", requires_grad=False, pin_memory=part.is_cuda)
            self._buffers[key] = buffer
        return buffer

    @contextlib.contextmanager
    def _copy_stream(self, device: torch.device) -> Iterator[None]:
        """Issues the work of this thread on the copy stream of a GPU; does nothing for other devices."""
        if device.type != "cuda":
            yield
            return
        # Set the device too: in a thread other than the main one, the current device is GPU 0. Restoring that device
        # after a stream context alone would take memory on GPU 0 for each rank.
        with torch.cuda.device(device), torch.cuda.stream(self._streams[device]):
            yield


def work_so_far(tensors: Mapping[str, Tensor]) -> dict[torch.device, torch.cuda.Event]:
    """Records an event on each GPU that holds a tensor, after the work that this thread has queued. Does not wait."""
    devices = {tensor.device for tensor in map(local, tensors.values()) if tensor.is_cuda}
    return {device: torch.cuda.current_stream(device).record_event() for device in devices}
