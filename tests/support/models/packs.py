"""Builds packed batches from lists of lengths."""

from collections.abc import Sequence

import torch
from torch import Tensor

from framework.batch import PackedBatch


def make_batch(
    lengths: Sequence[int],
    sequence_ids: Sequence[int] | None = None,
    input_ids: Tensor | None = None,
    vocab_size: int = 50,
) -> PackedBatch:
    """Packs sequences of the given lengths. Token ids are random unless given."""
    num_tokens = sum(lengths)
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    if input_ids is None:
        input_ids = torch.randint(0, vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(0))
    return PackedBatch(
        input_ids=input_ids,
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        token_type_ids=torch.cat([(torch.arange(length) >= length // 2).long() for length in lengths]),
        cu_seqlens=torch.tensor(offsets, dtype=torch.int32),
        sequence_ids=torch.tensor(list(sequence_ids or range(len(lengths)))),
        lengths=tuple(lengths),
        max_seqlen=max(lengths),
        num_sequences=len(lengths),
        num_tokens=num_tokens,
        targets={},
        counts={},
    )
