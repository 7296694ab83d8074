"""Copies of a checkpoint's tensors in host memory, so that they can be written while training changes the originals."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class Staging:
    """Host copies of this rank's tensors, allocated at the first copy and filled again at each: one at a time.

    Of a DTensor its local part is copied, whatever its mesh and placements are. Each copy has a storage of its own, as
    torch's writer takes a view for something that it must copy again.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies all tensors and waits for the devices that hold them.

        Args:
            tensors: By key; DTensors or plain ones, on any device.

        Returns:
            Tensors of the same shape, dtype and placements, held by the host. They change with the next call.
        """
        copies: dict[str, Tensor] = {}
        devices = set()
        for key, tensor in tensors.items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            buffer = self._buffer(key, local)
            buffer.copy_(local, non_blocking=True)
            if local.is_cuda:
                devices.add(local.device)
            # Not from_local: it would move the copy to the device of the mesh.
            copies[key] = DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return copies

    def _buffer(self, key: str, local: Tensor) -> Tensor:
        """The host memory of a key; pinned where the copy can then run beside others."""
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
            buffer = torch.empty_like(local, device="cpu", requires_grad=False, pin_memory=local.is_cuda)
            self._buffers[key] = buffer
        return buffer
