"""The content of planned micro-batches by sequence, for comparisons of plans."""

import numpy as np

from framework.batch import PackedBatch
from framework.data.planning.plan import StepPlan


def by_item(plan: StepPlan, step: int, rank: int) -> dict[int, tuple]:
    """Returns the id, tokens, segments and label of each sequence of a rank's step."""
    actual = {}
    for share in plan.micro_batches(step, rank):
        batch = plan.source.build(share, step)
        assert batch.num_tokens <= share.budget
        assert batch.num_tokens == plan.source.lengths(share.epochs, share.indices).sum()
        actual |= dict(zip(batch.sequence_ids.tolist(), contents(batch), strict=False)) if batch.num_sequences else {}
    return actual


def contents(batch: PackedBatch) -> list[tuple]:
    """Returns the tokens, segments and label of each sequence."""
    bounds = batch.cu_seqlens.numpy()[1:-1]
    ids, segments = (np.split(each.numpy(), bounds) for each in (batch.input_ids, batch.token_type_ids))
    labels = batch.targets["labels"].tolist()
    return [(i.tolist(), s.tolist(), label) for i, s, label in zip(ids, segments, labels, strict=True)]
