"""Records the collectives of a process in order, together with events of the test."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Call:
    """Name of a collective's operator, and the number of elements of its largest tensor."""

    name: str
    numel: int


class CollectiveTrace(TorchDispatchMode):
    """Dispatch mode that records every operator of c10d and of its functional variant.

    Torch's own CommDebugMode fails with fully_shard.

    Attributes:
        calls: Collectives, in order.
        events: Names of the collectives, and the events passed to `note`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.events: list[str] = []

    def note(self, event: str) -> None:
        self.events.append(event)

    @property
    def counts(self) -> Counter[str]:
        return Counter(call.name for call in self.calls)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix(f"{func.namespace}::").strip("_")
        if func.namespace in ("c10d", "_c10d_functional") and name != "wait_tensor":
            numel = max((leaf.numel() for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)), default=0)
            self.calls.append(Call(name, numel))
            self.events.append(name)
        return func(*args, **(kwargs or {}))
