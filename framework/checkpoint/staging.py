"""Copies of a checkpoint's tensors in host memory, so that they can be written while training changes the originals."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from framework.errors import CheckpointError
from framework.optim.shards import local


class Staging:
    """Host copies of this rank's tensors, allocated at the first copy and filled again at each: one at a time.

    Of a DTensor its local part is copied, whatever its mesh and placements are. Each copy has a storage of its own, as
    torch's writer takes a view for something that it must copy again.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def copy(
        self, tensors: Mapping[str, Tensor], after: Mapping[torch.device, torch.cuda.Event] | None = None
    ) -> dict[str, Tensor]:
        """Copies all tensors; when it returns, the originals may change. It may run in any thread.

        A GPU copies on a stream of its own, beside what it computes meanwhile.

        Args:
            tensors: By key; DTensors or plain ones, on any device. Nothing may change them until the end.
            after: Of `work_so_far`, from the thread that computed the tensors; None: this one did.

        Returns:
            Tensors of the same shape, dtype and placements, held by the host. They change with the next call.

        Raises:
            CheckpointError: Host or device refused, for example for want of memory.
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
                f"Weights and optimizer state could not be copied to host memory ({type(error).__name__}: {error}); "
                "give the host more memory, or write checkpoints without a copy: trainer.checkpoint_async=false. "
                "Checkpoints that are complete are whole."
            ) from error
        return copies

    def _copy(self, key: str, tensor: Tensor) -> Tensor:
        part = local(tensor)
        with self._beside(part.device):
            buffer = self._buffer(key, part)
            buffer.copy_(part, non_blocking=True)
        # Not from_local: it would move the copy to the device of the mesh.
        return DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer

    def _buffer(self, key: str, part: Tensor) -> Tensor:
        """The host memory of a key; pinned where the copy can then run beside others."""
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != part.shape or buffer.dtype != part.dtype:
            buffer = torch.empty_like(part, device="cpu", requires_grad=False, pin_memory=part.is_cuda)
            self._buffers[key] = buffer
        return buffer

    @contextlib.contextmanager
    def _beside(self, device: torch.device) -> Iterator[None]:
        """Lets this thread ask a GPU on the stream of the copies."""
        if device.type != "cuda":
            yield
            return
        # The device too: another thread than the main one stands at GPU 0, and going back there from a stream alone
        # would take memory of it for each rank.
        with torch.cuda.device(device), torch.cuda.stream(self._streams[device]):
            yield


def work_so_far(tensors: Mapping[str, Tensor]) -> dict[torch.device, torch.cuda.Event]:
    """Marks, on each GPU that holds a tensor, the end of what this thread has asked of it so far; waits for nothing."""
    devices = {tensor.device for tensor in map(local, tensors.values()) if tensor.is_cuda}
    return {device: torch.cuda.current_stream(device).record_event() for device in devices}
