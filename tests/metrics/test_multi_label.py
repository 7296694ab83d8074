"""Metrics of several labels compared with scikit-learn, also over several ranks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from framework.batch import IGNORE_INDEX
from framework.metrics.multi_label import ExactMatch, LabelMacroF1, MicroF1

NUM_LABELS = 4
THRESHOLD = 0.6


def draws(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits and labels; the last label neither occurs nor is predicted."""
    random = np.random.default_rng(num_rows)
    logits = random.normal(size=(num_rows, NUM_LABELS)) - [0, 0, 1, 99]
    return torch.tensor(logits), torch.tensor((random.random((num_rows, NUM_LABELS)) < [0.7, 0.4, 0.1, 0]).astype(int))


def share_of_rank(num_rows: int) -> list[float]:
    """Runs on each rank: an uneven share in uneven micro-batches with fillers, and an empty one."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    logits, labels = draws(num_rows)
    mine = torch.arange(num_rows) % (size + 1)
    mine = torch.nonzero((mine == rank) | ((mine == size) & (rank == 0)))[:, 0]
    metrics = (MicroF1(NUM_LABELS, THRESHOLD), LabelMacroF1(NUM_LABELS, THRESHOLD), ExactMatch(THRESHOLD))
    for rows in (mine[:3], mine[3:3], mine[3:]):
        filler = torch.full((2, NUM_LABELS), IGNORE_INDEX)
        for metric in metrics:
            metric.update(torch.cat([logits[rows], torch.ones(2, NUM_LABELS)]), torch.cat([labels[rows], filler]))
    return [metric.compute().item() for metric in metrics]


@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_agree_with_one_computation_over_all_rows(workers, world_size):
    logits, labels = draws(200)
    predicted = logits.sigmoid() > THRESHOLD
    expected = [
        f1_score(labels, predicted, average="micro"),
        f1_score(labels, predicted, average="macro", zero_division=0),
        accuracy_score(labels, predicted),
    ]
    for actual in workers.run(share_of_rank, world_size, 200):
        assert actual == pytest.approx(expected, abs=1e-7)


def test_without_targets_the_value_is_zero():
    for metric in (MicroF1(NUM_LABELS), LabelMacroF1(NUM_LABELS), ExactMatch()):
        metric.update(torch.ones(2, NUM_LABELS), torch.full((2, NUM_LABELS), IGNORE_INDEX))
        assert metric.compute().item() == 0.0
