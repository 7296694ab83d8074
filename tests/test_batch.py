"""Copies of packed batches to a device."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from framework.data.planning.collate import Target, pack_sequences

TENSORS = 6
"""Five tensors of a packed batch and one target."""


class Copies(TorchFunctionMode):
    """Records copies to CUDA, which needs no GPU, and if their source was pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[int] = []
        self.from_pinned: list[bool] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.pin_memory:
            self.pinned.append(id(args[0]))
            return args[0]
        if func is Tensor.to:
            self.from_pinned.append(id(args[0]) in self.pinned)
            return args[0]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("device", "non_blocking", "is_pinned"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_copies_that_must_not_block_pass_through_pinned_memory(device, non_blocking, is_pinned):
    ids = np.arange(5)
    batch = pack_sequences(ids, np.array([2, 3]), np.arange(2), targets={"words": Target(ids, "tokens")})
    with Copies() as copies:
        batch.to(device, non_blocking)
    assert copies.from_pinned == [is_pinned] * TENSORS


def test_a_copy_has_the_values_of_the_batch():
    batch = pack_sequences(np.arange(5), np.array([2, 3]), np.arange(2)).to(torch.device("cpu"), non_blocking=True)
    assert batch.input_ids.tolist() == [0, 1, 2, 3, 4]
    assert batch.lengths == (2, 3)
