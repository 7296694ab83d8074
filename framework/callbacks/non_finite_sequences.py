"""Which ranks and sequences a step that is not finite comes from, in words. Read only when it has happened."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from framework.batch import PackedBatch
from framework.constants import DUMMY_SEQUENCE_ID
from framework.distributed.processes.agreement import gather
from framework.modules.encoder_module import EncoderModule

_SHOWN_RANKS = 4
_SHOWN_RANGES = 20


def where_not_finite(pl_module: EncoderModule) -> str:
    """Names the sequences of the micro-batches whose own loss is not finite, by rank. Collective: all ranks must call.

    Where every micro-batch's loss is finite, the fault came up in the backward pass, whose gradients are added over
    ranks before anyone sees them: then it names all sequences of the step.
    """
    assert pl_module.step_batch is not None
    micro_batches = pl_module.step_batch.micro_batches
    finite = torch.isfinite(pl_module.step_sums).all(dim=1).tolist()
    bad = [micro for micro, is_fine in zip(micro_batches, finite, strict=True) if not is_fine]
    by_rank = gather((_ids(bad), _ids(micro_batches)))
    blamed = {rank: ids for rank, (ids, _) in enumerate(by_rank) if ids}
    if not blamed:
        everything = sorted(sequence_id for _, ids in by_rank for sequence_id in ids)
        return (
            f"Every sequence's loss is finite, the gradient is not; the step held sequence ids {_ranges(everything)}."
        )
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return f"The loss is not finite in the micro-batches of sequence ids {_ranges(blamed[0])}."
    shown = [f"on rank {rank}, sequence ids {_ranges(blamed[rank])}" for rank in sorted(blamed)[:_SHOWN_RANKS]]
    more = f"; and on {len(blamed) - _SHOWN_RANKS} more ranks" if len(blamed) > _SHOWN_RANKS else ""
    return f"The loss is not finite in micro-batches {'; '.join(shown)}{more}."


def _ids(micro_batches: Sequence[PackedBatch]) -> list[int]:
    ids = [sequence_id for micro in micro_batches for sequence_id in micro.sequence_ids.tolist()]
    return sorted(sequence_id for sequence_id in ids if sequence_id != DUMMY_SEQUENCE_ID)


def _ranges(ids: list[int]) -> str:
    """Sorted numbers in words: "3, 5 to 8"."""
    ranges: list[list[int]] = []
    for number in ids:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = [str(first) if first == last else f"{first} to {last}" for first, last in ranges[:_SHOWN_RANGES]]
    more = f" and others up to {ids[-1]}" if len(ranges) > _SHOWN_RANGES else ""
    return ", ".join(shown) + more
