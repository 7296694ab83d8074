"""Metrics compared with scikit-learn, also over several ranks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef

from framework.batch import IGNORE_INDEX
from framework.metrics.classification import Accuracy, MacroF1, Matthews, PositiveF1

NUM_LABELS = 5


def draws(num_rows: int, classes: int = NUM_LABELS) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits and labels; only `classes` of the labels occur."""
    random = np.random.default_rng(num_rows)
    logits = random.normal(size=(num_rows, NUM_LABELS))
    logits[:, classes:] = -9
    return torch.tensor(logits), torch.tensor(random.integers(0, classes, size=num_rows))


def share_of_rank(num_rows: int) -> tuple[list[float], list[list[int]]]:
    """Runs on each rank: an uneven share in uneven micro-batches with fillers, and an empty one."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    logits, labels = draws(num_rows)
    mine = torch.arange(num_rows) % (size + 1)
    mine = torch.nonzero((mine == rank) | ((mine == size) & (rank == 0)))[:, 0]
    metrics = (Accuracy(), MacroF1(NUM_LABELS), Matthews(NUM_LABELS))
    for rows in (mine[:3], mine[3:3], mine[3:]):
        filler = torch.full((2,), IGNORE_INDEX)
        for metric in metrics:
            metric.update(torch.cat([logits[rows], torch.ones(2, NUM_LABELS)]), torch.cat([labels[rows], filler]))
    return [metric.compute().item() for metric in metrics], metrics[1].matrix.tolist()


@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_agree_with_one_computation_over_all_rows(workers, world_size):
    num_rows = 200
    logits, labels = draws(num_rows)
    predicted = logits.argmax(-1)
    expected = [
        accuracy_score(labels, predicted),
        f1_score(labels, predicted, average="macro"),
        matthews_corrcoef(labels, predicted),
    ]
    for actual, matrix in workers.run(share_of_rank, world_size, num_rows):
        assert actual == pytest.approx(expected, abs=1e-7)
        assert matrix == confusion_matrix(labels, predicted).tolist()


def test_correlation_with_one_class_only_is_zero():
    logits, labels = draws(50)
    for scores, truth in ((logits, torch.ones_like(labels)), (torch.eye(NUM_LABELS)[torch.ones_like(labels)], labels)):
        metric = Matthews(NUM_LABELS)
        metric.update(scores, truth)
        assert metric.compute().item() == matthews_corrcoef(truth, scores.argmax(-1)) == 0


def test_a_class_that_does_not_occur_is_ignored():
    logits, labels = draws(50, classes=3)
    metric = MacroF1(NUM_LABELS)
    metric.update(logits, labels)
    assert metric.compute().item() == pytest.approx(f1_score(labels, logits.argmax(-1), average="macro"), abs=1e-7)


def test_without_targets_the_value_is_zero():
    for metric in (Accuracy(), MacroF1(NUM_LABELS), Matthews(NUM_LABELS)):
        metric.update(torch.zeros(2, NUM_LABELS), torch.full((2,), IGNORE_INDEX))
        assert metric.compute().item() == 0.0


def test_reset_clears_the_metric():
    metric = Accuracy()
    metric.update(torch.eye(2), torch.tensor([1, 0]))
    metric.reset()
    metric.update(torch.eye(2), torch.tensor([0, 0]))
    assert metric.compute().item() == 0.5


def test_positive_f1_is_that_of_the_second_class():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 2, generator=generator), torch.randint(0, 2, (60,), generator=generator)
    metric = PositiveF1()
    metric.update(torch.cat([logits, torch.ones(1, 2)]), torch.cat([labels, torch.tensor([IGNORE_INDEX])]))
    assert metric.compute().item() == pytest.approx(f1_score(labels, logits.argmax(-1)), abs=1e-7)
    never = PositiveF1()
    never.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert never.compute().item() == 0
