"""Metrics of pairs of numbers compared with scipy and scikit-learn, also over several ranks."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_squared_error, roc_auc_score

from framework.metrics.correlation import average_ranks
from framework.metrics.paired import Auroc, MeanSquaredError, Pearson, Spearman

METRICS = (Pearson, Spearman, MeanSquaredError, Auroc)


def draws(num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns predictions with ties, numbers that depend on them, and outcomes 0 or 1 that do too."""
    random = np.random.default_rng(num_rows)
    predictions = random.integers(-8, 9, num_rows) / 4
    numbers = np.round(predictions + random.normal(size=num_rows), 1)
    return tuple(
        torch.tensor(values, dtype=torch.float32)
        for values in (predictions, numbers, random.random(num_rows) < 1 / (1 + np.exp(-predictions)))
    )


def share_of_rank(num_rows: int) -> list[float]:
    """Runs on each rank: an uneven share in uneven micro-batches with fillers; the last of several ranks has none."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    predictions, numbers, outcomes = draws(num_rows)
    mine = torch.nonzero(torch.arange(num_rows) % max(size - 1, 1) == rank)[:, 0]
    metrics = [metric() for metric in METRICS]
    for rows in (mine[:3], mine[3:3], mine[3:]) if len(mine) else ():
        for metric in metrics:
            references = outcomes if isinstance(metric, Auroc) else numbers
            filler = torch.full((2,), torch.nan)
            metric.update(torch.cat([predictions[rows], torch.ones(2)]), torch.cat([references[rows], filler]))
    return [metric.compute().item() for metric in metrics]


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_ranks_agree_with_one_computation_over_all_rows(workers, world_size):
    predictions, numbers, outcomes = draws(200)
    expected = [
        pearsonr(predictions, numbers).statistic,
        spearmanr(predictions, numbers).statistic,
        mean_squared_error(numbers, predictions),
        roc_auc_score(outcomes, predictions),
    ]
    for actual in workers.run(share_of_rank, world_size, 200):
        assert actual == pytest.approx(expected, abs=1e-6)


def test_equal_values_share_the_mean_of_their_ranks():
    assert average_ranks(torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0, 1.0])).tolist() == [5, 1.5, 5, 3, 5, 1.5]


@pytest.mark.parametrize(
    ("metric", "predictions", "references"),
    [
        (Pearson(), [1.0, 1.0], [0.0, 1.0]),
        (Spearman(), [0.0, 1.0], [2.0, 2.0]),
        (Auroc(), [0.0, 1.0], [1.0, 1.0]),
        (MeanSquaredError(), [1.0], [math.nan]),
    ],
)
def test_undefined_values_are_nan(metric, predictions, references):
    metric.update(torch.tensor(predictions), torch.tensor(references))
    assert math.isnan(metric.compute().item())
