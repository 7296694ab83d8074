"""Device memory at fixed addresses that captured steps read and write: micro-batches of one shape, and gradients."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from framework.batch import PackedBatch

Form: TypeAlias = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
"""Name, dtype and shape of each tensor of a batch."""

_ALIGNMENT_BYTES = 256
"""Alignment of each tensor in its block, which vectorized kernels need."""


def tensors_of(batch: PackedBatch) -> dict[str, Tensor]:
    """Returns the tensors of a batch without a decoder, targets included, by name in a fixed order."""
    own = {field.name: getattr(batch, field.name) for field in fields(batch)}
    named = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    return named | {f"targets.{name}": batch.targets[name] for name in sorted(batch.targets)}


def form_of(batch: PackedBatch) -> tuple[Form, int]:
    """Returns all properties of a batch that a captured pass depends on: its tensors' form and `max_seqlen`."""
    tensors = tensors_of(batch).items()
    return tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors), batch.max_seqlen


class StaticBatch:
    """Batch whose tensors lie in one block of device memory, which every micro-batch of the same form is copied into.

    Its host fields hold no data of the first micro-batch, so that a captured pass cannot depend on them: `counts` is
    empty, and every sequence of `lengths` has `max_seqlen` tokens. Only the number of sequences is right.

    Args:
        like: First micro-batch, on the host, without `decoder_inputs`.
        device: Device of the block.

    Attributes:
        batch: Batch that the passes run on.
    """

    def __init__(self, like: PackedBatch, device: torch.device) -> None:
        self._form, _ = form_of(like)
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors_of(like).values()]
        self._starts, num_bytes = _aligned(sizes)
        self._block = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        names = (name for name, _, _ in self._form)
        views: dict[str, Any] = dict(zip(names, self._views(self._block), strict=True))
        targets = {name: views.pop(f"targets.{name}") for name in sorted(like.targets)}
        num_sequences = len(like.lengths)
        self.batch = replace(
            like,
            **views,
            targets=targets,
            lengths=(like.max_seqlen,) * num_sequences,
            num_sequences=num_sequences,
            num_tokens=len(like.input_ids),
            counts={},
        )

    def write(self, batch: PackedBatch) -> None:
        """Copies a micro-batch of the same form from the host, in one transfer that the host does not wait for.

        The caching allocator of pinned memory does not reuse the block before the transfer has ended.
        """
        pinned = torch.empty(self._block.shape, dtype=torch.uint8, pin_memory=self._block.is_cuda)
        for view, tensor in zip(self._views(pinned), tensors_of(batch).values(), strict=True):
            view.copy_(tensor)
        self._block.copy_(pinned, non_blocking=True)

    def _views(self, block: Tensor) -> list[Tensor]:
        """Returns the tensors of the form as parts of a block."""
        views = []
        for start, (_, dtype, shape) in zip(self._starts, self._form, strict=True):
            num_bytes = dtype.itemsize * torch.Size(shape).numel()
            views.append(block[start : start + num_bytes].view(dtype).view(shape))
        return views


class FlatGradients:
    """Gradients of a model in one fp32 tensor, so that one kernel sets all of them to zero.

    `attach` makes its parts the gradients of the parameters that a backward pass has reached. Other parameters have
    none, as without this class, and are not updated.

    Args:
        parameters: Parameters of the model, in fp32 on one device.

    Attributes:
        flat: (parameters' elements and gaps,) fp32.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        starts, num_bytes = _aligned([parameter.numel() * 4 for parameter in self._parameters])
        self.flat = torch.zeros(num_bytes // 4, device=self._parameters[0].device)
        self._parts = [
            self.flat[start // 4 : start // 4 + parameter.numel()].view_as(parameter)
            for start, parameter in zip(starts, self._parameters, strict=True)
        ]
        self._reached: set[int] = set()
        self._is_attached = False

    def add(self, loss: Tensor) -> None:
        """Runs the backward pass of a scalar and adds its gradients.

        `Tensor.backward` would add them one parameter at a time, and under a tracer it would replace `grad`.
        """
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        reached = [index for index, gradient in enumerate(gradients) if gradient is not None]
        torch._foreach_add_([self._parts[index] for index in reached], [gradients[index] for index in reached])
        # An update that was captured before covers only the parameters that had a gradient then.
        assert not self._is_attached or self._reached.issuperset(reached)
        self._reached.update(reached)

    def attach(self) -> None:
        """Sets `grad` of each parameter that a backward pass has reached, also in a step that runs as a graph."""
        self._is_attached = True
        for index in self._reached:
            self._parameters[index].grad = self._parts[index]

    def zero(self) -> None:
        """Sets all gradients to zero."""
        self.flat.zero_()


def _aligned(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Returns the first byte of each part of a block, and the bytes of the block."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return starts, end
