"""Batches of one fixed shape without values, and a recorder of called operators."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from framework.batch import PackedBatch

PACKS = [((30, 34, 64), 3), ((60, 60, 8), 2), ((64, 63, 1), 1)]
"""Lengths and real sequences of micro-batches of one fixed shape: 128 tokens, 3 sequences, none over 64."""


def fixed_shape_batch(lengths: tuple[int, ...], num_sequences: int, device: str) -> PackedBatch:
    def zeros(size: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    num_tokens, shape = sum(lengths), len(lengths)
    return PackedBatch(
        input_ids=zeros(num_tokens),
        position_ids=zeros(num_tokens),
        token_type_ids=zeros(num_tokens),
        cu_seqlens=zeros(shape + 1, torch.int32),
        sequence_ids=zeros(shape),
        lengths=lengths,
        max_seqlen=64,
        num_sequences=num_sequences,
        num_tokens=sum(lengths[:num_sequences]),
        targets={},
        counts={},
    )


class Called(TorchDispatchMode):
    """Dispatch mode that records the names of called operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
