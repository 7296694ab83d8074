"""Probe of an encoder: a linear layer is fitted on its frozen features of labelled texts.

Sources: Alain, Bengio 2016, arXiv:1610.01644; for sentences Conneau et al. 2018, arXiv:1805.01070. Reading, labels and
metrics are those of sequence classification.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from framework.batch import PackedBatch
from framework.data.examples.table import TableData
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.tasks.pooling import POOLINGS, Pooling, check_pooled_scores
from framework.tasks.probing.linear_fit import LinearFit, Losses, sigmoid_loss, softmax_loss, squared_loss
from framework.tasks.sequence_classification.problem import Problem
from framework.tasks.sequence_classification.task import SequenceClassificationTask

_LOSSES: dict[str, Losses] = {
    "single_label": softmax_loss,
    "multi_label": sigmoid_loss,
    "regression": squared_loss,
}


@dataclass(frozen=True)
class ProbeSettings:
    """Configuration of a probe.

    Attributes:
        data: Labelled texts or pairs with a `train` and a `validation` split.
        problem: "single_label" or "multi_label" for logistic regression; "regression" for linear regression.
        max_length: Most tokens of a sequence, special tokens included.
        pooling: Name in `framework.tasks.pooling`: "mean" or "cls".
        l2: Weight of the penalty; `l2 / 2` times the squared weights is added to the summed loss. Features have unit
            variance.
    """

    data: TableData
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    max_length: int = 128
    pooling: str = "mean"
    l2: float = 1.0

    def __post_init__(self) -> None:
        check_pooled_scores(self.max_length, self.pooling, 0.0)
        if self.data.balance is not None:
            raise ConfigError(
                f"data.balance is {self.data.balance} in a probe. A probe is fitted to each row once. Set it to null."
            )
        if not self.l2 > 0:
            raise ConfigError(
                f"l2 is {self.l2}. It must be above 0, otherwise the weights of separable labels grow without limit. "
                "Choose, for example, 1.0."
            )

    def build(self, tokenizer: Tokenizer) -> "Probe":
        """Reads and tokenizes the rows.

        Raises:
            DataError: A file or row cannot be used.
            ConfigError: There is no validation split.
        """
        task = SequenceClassificationTask(self.max_length, self.pooling, problem=self.problem)
        sources = task.build_sources(self.data, tokenizer, seed=0)
        if "validation" not in sources:
            raise ConfigError(
                f"the probe of {self.data.train} has no validation rows. A probe is evaluated on them. Set "
                "`data.validation` or `data.validation_fraction`."
            )
        flat = {name: sources[name] for name in ("train", "validation")}
        assert all(isinstance(source, FlatSource) for source in flat.values())
        return Probe(task.problem, flat, POOLINGS[self.pooling], _LOSSES[self.problem], self.l2)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Probe:
    """A probe with its texts.

    Attributes:
        problem: Problem with labels and metrics.
        sources: Sources of `train` and `validation`.
        pooling: Function from hidden states to features.
        losses: Loss that the fit minimizes.
        l2: Weight of the penalty, as in ProbeSettings.
    """

    problem: Problem
    sources: Mapping[str, FlatSource]
    pooling: Pooling
    losses: Losses
    l2: float

    @property
    def best_metric(self) -> str:
        """Returns the best metric of the problem, which is the first in `scores`."""
        return self.problem.best_metric

    def scores(self, features: Mapping[str, Tensor]) -> dict[str, float]:
        """Fits on the training rows and returns the problem's metrics on the validation rows by name.

        Args:
            features: (rows, hidden) features of each split, in the order of its source, on the CPU.
        """
        train, validation = (_all_rows(self.sources[split]) for split in ("train", "validation"))
        fit = LinearFit(features["train"], train.targets["labels"], self.problem.num_scores, self.losses, self.l2)
        metrics = self.problem.build_metrics()
        for metric in metrics.values():
            metric.sync_on_compute = False  # every rank has all rows
        self.problem.update_metrics(metrics, fit.scores(features["validation"]), validation)
        names = sorted(metrics, key=lambda name: name != self.best_metric)
        return {name: float(metrics[name].compute()) for name in names}


def _all_rows(source: FlatSource) -> PackedBatch:
    """Builds one batch of all rows of a split, for their targets."""
    indices = np.arange(len(source))
    return source.build(StepSequences(np.zeros_like(indices), indices, indices), step=0)
