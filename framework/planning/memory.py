"""Memory of a step: every live block with its kind and its origin, counted as torch's allocator would."""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["weights", "gradients", "optimizer", "activations", "gathered weights", "buffers", "data", "graphs"]

KINDS: tuple[Kind, ...] = (
    *("weights", "gradients", "optimizer", "activations", "gathered weights", "buffers", "data", "graphs"),
)
"""Kinds of memory. "activations" are all tensors of a step that are none of the others, temporary ones included."""

NUM_LARGEST = 10


@dataclass(slots=True)
class Block:
    """Memory of one storage.

    Attributes:
        num_bytes: Allocated bytes, rounded up.
        number: Number of blocks that were allocated before in the step.
        kind: Kind of the memory.
        shape: Shape of the tensor that allocated it.
        dtype: Dtype of that tensor.
        origin: Module that made it, or the activity of the step outside of modules.
    """

    num_bytes: int
    number: int
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    origin: str


@dataclass(frozen=True)
class Peak:
    """Memory at the moment of a step at which most of it is in use.

    Attributes:
        num_bytes: Bytes in use.
        by_kind: Bytes of each kind.
        largest: The largest blocks, in descending order.
    """

    num_bytes: int
    by_kind: dict[Kind, int]
    largest: tuple[Block, ...]


class LiveMemory:
    """Blocks in use, from the tensors that operators return.

    Kinds of blocks that a step allocates are known only later, for example when a collective reads them. A step
    therefore runs twice: the first run finds the kinds and the moment of the peak, the second one reads the peak.

    Attributes:
        now: Bytes of all blocks.
        peak: Most bytes of all blocks since `begin`.
        pool: Bytes that CUDA graphs keep for themselves besides.

    Args:
        granularity: Bytes to a multiple of which a block is rounded up; 512 in torch's allocator for CUDA.
    """

    def __init__(self, granularity: int = 1) -> None:
        self.granularity = granularity
        self.now = 0
        self.peak = 0
        self.pool = 0
        self._most = 0
        self._blocks: dict[int, Block] = {}
        self._kinds: dict[int, Kind] = {}
        self._number = 0
        self._event = 0
        self._peak_event = -1
        self._due_event = -1
        self._snapshot: Peak | None = None

    def begin(self, is_second: bool = False) -> None:
        """Starts a new peak measurement. A second run repeats a step, and its peak is read with all kinds."""
        self._due_event = self._peak_event if is_second else -1
        for block in self._blocks.values():
            block.number = -1  # of an earlier run: its number is no block of this one
        if not is_second:
            self._kinds.clear()
        self._number = self._event = 0
        self.peak, self._peak_event, self._snapshot = self.now, -1, self._read() if is_second else None

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Context of a function that is captured as a graph. Graphs share a pool for the most that one allocates.

        An ordinary run of the function, with which training compares its graph, needs this memory a second time.
        """
        before = self._most = self.now
        yield
        self.pool = max(self.pool, self._most - before)

    def read_peak(self) -> Peak:
        """Returns the peak of a second run, with the pool of graphs."""
        assert self._snapshot is not None
        return self._snapshot

    def add(self, tensor: Tensor, origin: str) -> None:
        """Counts the storage of a tensor, unless it is counted already."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._blocks:
            return
        kind = self._kinds.get(self._number, "activations")
        dtype = str(tensor.dtype).removeprefix("torch.")
        block = Block(0, self._number, kind, tuple(tensor.shape), dtype, origin)
        self._number += 1
        self._blocks[address] = block
        weakref.finalize(storage, self._free, address, block)
        self._resize(block, storage.nbytes())

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Counts the new size of a storage, which gathered weights change to free their memory."""
        block = self._blocks.get(storage._cdata)
        if block is not None:
            self._resize(block, storage.nbytes())

    def mark(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """Sets the kind of tensors that are counted, in this step and in a second run of it."""
        for tensor in tensors:
            block = self._blocks.get(tensor.untyped_storage()._cdata)
            if block is not None and block.kind in ("activations", kind):
                block.kind = kind
                self._kinds[block.number] = kind

    def keep(self, tensors: Mapping[str, Tensor], kind: Kind) -> int:
        """Sets the kind and the names of tensors that outlive steps, and returns their bytes."""
        blocks = {}
        for name, tensor in tensors.items():
            block = self._blocks[tensor.untyped_storage()._cdata]
            blocks[id(block)] = block
            block.kind, block.number, block.origin = kind, -1, name
        return sum(block.num_bytes for block in blocks.values())

    def _resize(self, block: Block, num_bytes: int) -> None:
        rounded = -(-num_bytes // self.granularity) * self.granularity
        self.now += rounded - block.num_bytes
        block.num_bytes = rounded
        self._event += 1
        self._most = max(self._most, self.now)
        if self._event == self._due_event:
            self._snapshot = self._read()
        if self.now > self.peak:
            self.peak, self._peak_event = self.now, self._event

    def _free(self, address: int, block: Block) -> None:
        if self._blocks.get(address) is block:
            del self._blocks[address]
            self.now -= block.num_bytes

    def _read(self) -> Peak:
        by_kind: Counter[Kind] = Counter()
        for block in self._blocks.values():
            by_kind[block.kind] += block.num_bytes
        by_kind["graphs"] = self.pool
        pools = [Block(self.pool, -1, "graphs", (self.pool,), "uint8", "pool of CUDA graphs")] if self.pool else []
        largest = sorted([*self._blocks.values(), *pools], key=lambda block: -block.num_bytes)[:NUM_LARGEST]
        copies = tuple(
            Block(each.num_bytes, each.number, each.kind, each.shape, each.dtype, each.origin) for each in largest
        )
        return Peak(self.now + self.pool, {kind: by_kind[kind] for kind in KINDS}, copies)


class ResizeHook:
    """Context in which changes of the size of storages are reported. No operator shows them."""

    def __init__(self, report: Callable[[torch.UntypedStorage], None]) -> None:
        self._report = report

    def __enter__(self) -> None:
        self._original: Any = torch.UntypedStorage.resize_
        original, report = self._original, self._report

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            report(storage)
            return result

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]

    def __exit__(self, *error: object) -> None:
        torch.UntypedStorage.resize_ = self._original  # type: ignore[method-assign]
