"""Exactly one label for each sequence (Devlin et al. 2019, arXiv:1810.04805, section 4.1); some may be out of scope."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.examples.answers import Answer, one_label
from framework.data.examples.table import LabelledText
from framework.data.flat_source import FlatTarget
from framework.errors import ConfigError, DataError
from framework.metrics.classification import Accuracy, ConfusionMetric, MacroF1, Matthews
from framework.metrics.paired import Auroc
from framework.tasks.examination import Examination, FoundItems
from framework.tasks.sequence_classification.decode import class_scores, decode_labels, examine_labels
from framework.tasks.sequence_classification.problem import Problem, text_of


class SingleLabel(Problem):
    """Softmax over the labels.

    Args:
        label_smoothing: Share of the target that is spread evenly over all labels (Szegedy et al. 2016,
            arXiv:1512.00567, section 7).
        class_weights: Weight of each label in the loss: "balanced" (rows / (labels x rows with the label), in `train`),
            or by label, where those that are not named have 1; None: 1 for all. The loss is then the weighted mean, as
            in `torch.nn.CrossEntropyLoss(weight)`.
        out_of_scope_label: Label of the rows that belong to none of the others. Where rows of `train` have it, it is a
            class like any other. Otherwise it is only detected: nothing is asked of such rows but the metric.

    Raises:
        ConfigError: `label_smoothing` is not in [0, 1), or a weight is not positive.
    """

    best_metric = "accuracy"

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | Mapping[str | int, float] | None = None,
        out_of_scope_label: str | int | None = None,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"task.label_smoothing is {label_smoothing}, it must be at least 0 and below 1.")
        if isinstance(class_weights, str) and class_weights != "balanced":
            raise ConfigError(
                f"task.class_weights is {class_weights!r}, it must be balanced, {{label: weight}}, or null."
            )
        if isinstance(class_weights, Mapping):
            class_weights = {str(label): weight for label, weight in class_weights.items()}
            for label, weight in class_weights.items():
                if not (weight > 0 and math.isfinite(weight)):
                    raise ConfigError(f"class_weights.{label} is {weight}, it must be a positive number.")
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.out_of_scope_label = None if out_of_scope_label is None else str(out_of_scope_label)
        self.answers = one_label(frozenset(() if self.out_of_scope_label is None else (self.out_of_scope_label,)))
        self._weights: tuple[float, ...] | None = None

    def learn(self, labels: Sequence[str], answers: Sequence[Answer]) -> None:
        """Takes the label set, and finds the weights of its labels."""
        super().learn(labels, answers)
        if self.class_weights is None:
            return
        if isinstance(self.class_weights, Mapping):
            unknown = sorted(self.class_weights.keys() - set(labels))
            if unknown:
                raise ConfigError(
                    f"class_weights names {unknown[0]!r}, but the labels are {', '.join(labels)}; name some of these."
                )
            self._weights = tuple(float(self.class_weights.get(label, 1.0)) for label in labels)
            return
        rows = Counter(answers)
        missing = [label for label in labels if not rows[label]]
        if missing:
            raise DataError(
                f"no training row has the label {missing[0]!r}, so class_weights=balanced has no weight for it; give "
                "rows with it, or weights by label."
            )
        num_rows = sum(rows[label] for label in labels)
        self._weights = tuple(num_rows / (len(labels) * rows[label]) for label in labels)

    def side_config(self) -> dict[str, Any]:
        """Labels, and the weights where there are some."""
        side = super().side_config()
        if self._weights is not None:
            side["class_weights"] = list(self._weights)
        return side

    def restore(self, side: Mapping[str, Any]) -> None:
        """Takes back labels and weights."""
        super().restore(side)
        weights = side.get("class_weights")
        self._weights = None if weights is None else tuple(float(weight) for weight in weights)

    def targets(self, answers: Sequence[Answer | None]) -> dict[str, FlatTarget]:
        """`labels` (sequences,): places in the label set; where asked for also `out_of_scope` (sequences,)."""
        targets = {"labels": FlatTarget(self._places(answers), "sequences")}
        if self.out_of_scope_label is not None:
            outside = [IGNORE_INDEX if answer is None else answer == self.out_of_scope_label for answer in answers]
            targets["out_of_scope"] = FlatTarget(np.array(outside, dtype=np.int64), "sequences")
        return targets

    def counts(self, answers: Sequence[Answer | None]) -> np.ndarray:
        """1, or the weight of the label."""
        places = self._places(answers)
        weights = np.array(self._weights or (1.0,) * len(self.labels))
        return np.where(places != IGNORE_INDEX, weights[places.clip(min=0)], 0.0)

    def losses(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Cross entropy times the label's weight; the smoothed part weighs each label by its own."""
        weights = None
        if self._weights is not None:
            weights = torch.tensor(self._weights, dtype=torch.float32).to(logits.device, non_blocking=True)
        return cross_entropy(
            logits.float(),
            batch.targets["labels"],
            weights,
            ignore_index=IGNORE_INDEX,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )

    def build_metrics(self) -> dict[str, Metric]:
        """Accuracy, macro F1, Matthews' correlation; with an out-of-scope label the accuracy in scope and an AUROC."""
        num_labels = len(self.labels)
        metrics: dict[str, Metric] = {
            "accuracy": Accuracy(),
            "macro_f1": MacroF1(num_labels),
            "matthews": Matthews(num_labels),
        }
        if self.out_of_scope_label is not None:
            metrics |= {"in_scope_accuracy": Accuracy(), "out_of_scope_auroc": Auroc()}
        return metrics

    def update_metrics(self, metrics: Mapping[str, Metric], logits: Tensor, batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        labels = batch.targets["labels"]
        for name in ("accuracy", "macro_f1", "matthews"):
            metrics[name].update(logits, labels)
        if self.out_of_scope_label is not None:
            outside = batch.targets["out_of_scope"]
            metrics["in_scope_accuracy"].update(logits, torch.where(outside == 1, IGNORE_INDEX, labels))
            references = torch.where(outside == IGNORE_INDEX, torch.nan, outside.float())
            metrics["out_of_scope_auroc"].update(self.out_of_scope_scores(logits), references)

    def out_of_scope_scores(self, logits: Tensor) -> Tensor:
        """1 - the largest probability of a label in scope (Hendrycks, Gimpel 2017, arXiv:1610.02136, section 3).

        Args:
            logits: (sequences, labels).

        Returns:
            (sequences,) fp32; large where a sequence seems to be out of scope.
        """
        inside = [place for place, label in enumerate(self.labels) if label != self.out_of_scope_label]
        return 1 - logits.float().softmax(dim=-1)[:, inside].amax(dim=-1)

    def decode(self, logits: Tensor) -> list[dict[str, Any]]:
        """The best label and all probabilities; with an out-of-scope label the score `out_of_scope` too."""
        predictions = decode_labels(logits, self.labels)
        if self.out_of_scope_label is not None:
            scores = self.out_of_scope_scores(logits).tolist()
            predictions = [row | {"out_of_scope": score} for row, score in zip(predictions, scores, strict=True)]
        return predictions

    def class_table(self, metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
        """Precision, recall, F1 and number of sequences of each label."""
        macro_f1 = metrics["macro_f1"]
        assert isinstance(macro_f1, ConfusionMetric)
        matrix = macro_f1.matrix
        return class_scores(matrix.diagonal(), matrix.sum(1), matrix.sum(0), self.labels)

    def examine(self, records: Sequence[LabelledText], found: FoundItems) -> Examination:
        """Rows that are only detected to be out of scope are left out of all scores."""
        return examine_labels(records, [text_of(record) for record in records], found, self.labels)

    def _places(self, answers: Sequence[Answer | None]) -> np.ndarray:
        place: dict[Answer, int] = {label: index for index, label in enumerate(self.labels)}
        return np.array([place.get(answer, IGNORE_INDEX) for answer in answers], dtype=np.int64)
