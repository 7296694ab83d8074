"""Exactly one label for each sequence (Devlin et al. 2019, arXiv:1810.04805, section 4.1), or out of scope."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.nn.functional import cross_entropy

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.examples.answers import Answer, one_label
from framework.data.examples.table import LabelledText
from framework.data.flat_source import FlatTarget
from framework.errors import ConfigError, DataError, check_fraction
from framework.nn.cross_entropy import at_least_fp32
from framework.tasks.examination import Examination, ItemResults
from framework.tasks.sequence_classification.decode import class_scores, decode_labels, examine_labels
from framework.tasks.sequence_classification.problem import Problem, text_of

if TYPE_CHECKING:
    from torchmetrics import Metric

    from framework.metrics.classification import ConfusionMetric


class SingleLabel(Problem):
    """Problem with a softmax over the labels.

    Args:
        label_smoothing: Fraction of the target that is spread evenly over all labels (Szegedy et al. 2016,
            arXiv:1512.00567, section 7).
        class_weights: Weight of each label in the loss: "balanced" (rows / (labels x rows with the label), in `train`),
            or a mapping by label, with 1 for labels that it does not contain; None: 1 for all. The loss is the weighted
            mean, as in `torch.nn.CrossEntropyLoss(weight)`.
        out_of_scope_label: Label of rows that belong to no other label. If rows of `train` have it, it is an ordinary
            class. Otherwise it is only detected, and its rows count only for the detection metric.

    Raises:
        ConfigError: `label_smoothing` is not in [0, 1), or a weight is not positive.
    """

    best_metric = "accuracy"
    has_worst_group = True

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | Mapping[str | int, float] | None = None,
        out_of_scope_label: str | int | None = None,
    ) -> None:
        check_fraction("task.label_smoothing", label_smoothing, "Set 0 to disable it.")
        if isinstance(class_weights, str) and class_weights != "balanced":
            raise ConfigError(
                f"task.class_weights is {class_weights!r}. It must be balanced, {{label: weight}}, or null. Correct it."
            )
        if isinstance(class_weights, Mapping):
            class_weights = {str(label): weight for label, weight in class_weights.items()}
            for label, weight in class_weights.items():
                if not (weight > 0 and math.isfinite(weight)):
                    raise ConfigError(
                        f"task.class_weights.{label} is {weight}. A weight must be positive and finite. Correct it."
                    )
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.out_of_scope_label = None if out_of_scope_label is None else str(out_of_scope_label)
        self.answers = one_label(frozenset(() if self.out_of_scope_label is None else (self.out_of_scope_label,)))
        detection = () if self.out_of_scope_label is None else ("in_scope_accuracy", "out_of_scope_auroc")
        self.metric_modes = dict.fromkeys(("accuracy", "macro_f1", "matthews", *detection), "max")
        self._weights: tuple[float, ...] | None = None
        self._device_weights: Tensor | None = None

    def learn(self, labels: Sequence[str], answers: Sequence[Answer]) -> None:
        """Sets the label set and computes the weights of its labels."""
        super().learn(labels, answers)
        self._device_weights = None
        if self.class_weights is None:
            return
        if isinstance(self.class_weights, Mapping):
            unknown = sorted(self.class_weights.keys() - set(labels))
            if unknown:
                raise ConfigError(
                    f"task.class_weights contains {unknown[0]!r}, which is not a label. "
                    f"Labels are {', '.join(labels)}. Choose some of these."
                )
            self._weights = tuple(float(self.class_weights.get(label, 1.0)) for label in labels)
            return
        rows = Counter(answers)
        missing = [label for label in labels if not rows[label]]
        if missing:
            raise DataError(
                f"no training row has the label {missing[0]!r}. task.class_weights=balanced needs rows of each label. "
                "Add such rows, or give weights by label."
            )
        num_rows = sum(rows[label] for label in labels)
        self._weights = tuple(num_rows / (len(labels) * rows[label]) for label in labels)

    @property
    def single_labels(self) -> tuple[str, ...]:
        """Returns all labels, because a sequence has exactly one of them."""
        return self.labels

    def to_record(self) -> dict[str, Any]:
        """Returns the labels and, if set, their weights."""
        record = super().to_record()
        if self._weights is not None:
            record["class_weights"] = list(self._weights)
        return record

    def restore(self, record: Mapping[str, Any]) -> None:
        """Restores labels and weights."""
        super().restore(record)
        self._device_weights = None
        weights = record.get("class_weights")
        self._weights = None if weights is None else tuple(float(weight) for weight in weights)

    def targets(self, answers: Sequence[Answer | None]) -> dict[str, FlatTarget]:
        """Returns `labels` (sequences,), indices in the label set, and `out_of_scope` (sequences,) if configured."""
        targets = {"labels": FlatTarget(self._label_indices(answers), "sequences")}
        if self.out_of_scope_label is not None:
            outside = [IGNORE_INDEX if answer is None else answer == self.out_of_scope_label for answer in answers]
            targets["out_of_scope"] = FlatTarget(np.array(outside, dtype=np.int64), "sequences")
        return targets

    def counts(self, answers: Sequence[Answer | None]) -> np.ndarray:
        """Returns the weight of each sequence's label (1 without class weights), 0 if the label is unknown."""
        indices = self._label_indices(answers)
        weights = np.array(self._weights or (1.0,) * len(self.labels))
        return np.where(indices != IGNORE_INDEX, weights[indices.clip(min=0)], 0.0)

    def losses(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Returns the cross-entropy times the label's weight; label smoothing uses the weight of each label."""
        return cross_entropy(
            at_least_fp32(logits),
            batch.targets["labels"],
            None if self._weights is None else self._weights_on(logits.device).to(at_least_fp32(logits).dtype),
            ignore_index=IGNORE_INDEX,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )

    def _weights_on(self, device: torch.device) -> Tensor:
        """Returns (labels,) fp32 weights, copied to the device once, because a captured step cannot copy them."""
        if detect_fake_mode() is not None:  # a real step must not reuse a tensor without memory
            return torch.tensor(self._weights, dtype=torch.float32, device=device)
        if self._device_weights is None or self._device_weights.device != device:
            with torch.inference_mode(False):  # a validation may come first
                self._device_weights = torch.tensor(self._weights, dtype=torch.float32, device=device)
        return self._device_weights

    def build_metrics(self) -> dict[str, Metric]:
        """Builds accuracy, macro F1 and Matthews' correlation.

        Two labels add F1 of the second one. Out-of-scope labels add in-scope accuracy and AUROC.
        """
        # torchmetrics takes seconds to import, and predictions need no metrics.
        from framework.metrics.classification import Accuracy, MacroF1, Matthews, PositiveF1
        from framework.metrics.paired import Auroc

        num_labels = len(self.labels)
        metrics: dict[str, Metric] = {
            "accuracy": Accuracy(),
            "macro_f1": MacroF1(num_labels),
            "matthews": Matthews(num_labels),
        }
        if num_labels == 2:
            metrics["f1"] = PositiveF1()
        if self.out_of_scope_label is not None:
            metrics |= {"in_scope_accuracy": Accuracy(), "out_of_scope_auroc": Auroc()}
        return metrics

    def update_metrics(self, metrics: Mapping[str, Metric], logits: Tensor, batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        labels = batch.targets["labels"]
        for name in ("accuracy", "macro_f1", "matthews", "f1"):
            if name in metrics:
                metrics[name].update(logits, labels)
        if self.out_of_scope_label is not None:
            outside = batch.targets["out_of_scope"]
            metrics["in_scope_accuracy"].update(logits, torch.where(outside == 1, IGNORE_INDEX, labels))
            references = torch.where(outside == IGNORE_INDEX, torch.nan, outside.float())
            metrics["out_of_scope_auroc"].update(self.out_of_scope_scores(logits), references)

    def out_of_scope_scores(self, logits: Tensor) -> Tensor:
        """Returns 1 - the largest in-scope probability (Hendrycks, Gimpel 2017, arXiv:1610.02136, section 3).

        Args:
            logits: (sequences, labels).

        Returns:
            (sequences,) fp32; larger for sequences that are likely out of scope.
        """
        in_scope = [index for index, label in enumerate(self.labels) if label != self.out_of_scope_label]
        return 1 - logits.float().softmax(dim=-1)[:, in_scope].amax(dim=-1)

    def decode(self, logits: Tensor) -> list[dict[str, Any]]:
        """Returns the best label and all probabilities, and with an out-of-scope label the score `out_of_scope`."""
        predictions = decode_labels(logits, self.labels)
        if self.out_of_scope_label is not None:
            scores = self.out_of_scope_scores(logits).tolist()
            predictions = [row | {"out_of_scope": score} for row, score in zip(predictions, scores, strict=True)]
        return predictions

    def class_table(self, metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
        """Returns precision, recall, F1 and number of sequences of each label."""
        matrix = cast("ConfusionMetric", metrics["macro_f1"]).matrix
        return class_scores(matrix.diagonal(), matrix.sum(1), matrix.sum(0), self.labels)

    def examine(self, records: Sequence[LabelledText], results: ItemResults) -> Examination:
        """Builds the error analysis; rows whose out-of-scope label is no class have no score."""
        return examine_labels(records, [text_of(record) for record in records], results, self.labels)

    def _label_indices(self, answers: Sequence[Answer | None]) -> np.ndarray:
        indices: dict[Answer, int] = {label: index for index, label in enumerate(self.labels)}
        return np.array([indices.get(answer, IGNORE_INDEX) for answer in answers], dtype=np.int64)
