"""Stand-in for CUDA graphs on the CPU: a tape of operators that is replayed on the same memory.

As a CUDA graph, the tape repeats operators with the arguments of the capture. Tensors that existed before are read at
their addresses, numbers of the host are constants, and a capture leaves all memory unchanged.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from framework.modules.passes.captured import WARM_UP_RUNS

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::is_nonzero", "aten::equal")


class Tape(TorchDispatchMode):
    """Records the operators of a function, those of its backward pass included.

    Raises:
        RuntimeError: An operator reads a value of a tensor on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []
        self._own: dict[int, Tensor] = {}
        self._before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name in WAITS:
            raise RuntimeError(f"{func._schema.name} waits for the device, which a capture does not permit")
        self._keep(func, args, kwargs)
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor):
                self._own.setdefault(id(tensor), tensor)
        return out

    def _keep(self, func, args, kwargs) -> None:
        """Copies the tensors that an operator overwrites, unless the function itself made them."""
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                for tensor in tree_flatten(value)[0]:
                    if isinstance(tensor, Tensor) and id(tensor) not in self._own:
                        self._before.append((tensor, tensor.clone()))

    def undo(self) -> None:
        """Restores the memory that the function has overwritten."""
        for tensor, value in reversed(self._before):
            tensor.copy_(value)
        self._before.clear()

    @torch.no_grad()
    def replay(self) -> None:
        """Runs the operators again, with the outputs of this run in place of those of the capture."""
        new: dict[int, Tensor] = {}

        def renewed(tensor: Tensor) -> Tensor:
            return new.get(id(tensor), tensor)

        for func, args, kwargs, out in self.calls:
            result = func(*tree_map_only(Tensor, renewed, args), **tree_map_only(Tensor, renewed, kwargs))
            for old, fresh in zip(tree_flatten(out)[0], tree_flatten(result)[0], strict=True):
                if isinstance(old, Tensor) and old is not fresh:
                    new[id(old)] = fresh


class TracedGraphs:
    """`framework.modules.passes.captured.Graphs` on the CPU; it counts captures and replays."""

    warm_up_runs: float = WARM_UP_RUNS

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.num_replays = 0

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        tape = Tape()
        with tape:
            function()
        with torch.no_grad():
            tape.undo()
        self.tapes.append(tape)

        def replay() -> None:
            self.num_replays += 1
            tape.replay()

        return replay


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, _: Tensor, *lengths: int, window_size: tuple[int, int]
) -> Tensor:
    """Computes `varlen_attn` of equal offsets on the CPU without reading lengths on the host.

    A captured step on CUDA reads only the offsets; the CPU's own attention depends on lengths.
    """
    positions = torch.arange(query.shape[0])
    sequences = torch.searchsorted(offsets[1:].contiguous(), positions, right=True)
    is_seen = sequences[:, None] == sequences[None, :]
    if window_size[0] >= 0:
        is_seen = is_seen & ((positions[:, None] - positions[None, :]).abs() <= window_size[0])
    scores = torch.einsum("ihd,jhd->hij", query.float(), key.float()) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~is_seen, float("-inf")).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, value.float()).to(query.dtype)
