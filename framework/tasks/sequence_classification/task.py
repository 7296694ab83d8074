"""Sequence classification: a label, several labels or a number for a text or a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.data.examples.answers import Answer
from framework.data.examples.table import LabelledText, TableData
from framework.data.facts import SplitFacts, range_of, with_facts
from framework.data.flat_source import FlatSource
from framework.data.planning.order import BalancedShuffle
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, check_choice
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.examination import Examination, ItemResults, default_examination
from framework.tasks.explanation import Explained, TokenSpans
from framework.tasks.pooling import check_pooled_scores
from framework.tasks.sequence_classification.decode import chosen_scores
from framework.tasks.sequence_classification.features import (
    GROUPS,
    LOSS_TERM,
    SequenceGroups,
    classification_source,
)
from framework.tasks.sequence_classification.groups import GroupLoss, Groups
from framework.tasks.sequence_classification.head import PROJECTIONS, build_sequence_classification_head
from framework.tasks.sequence_classification.problems import build_problem
from framework.tasks.sequence_classification.windows import Scoring, first_windows, locate_windows, window_source
from framework.tasks.task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric

WORST_GROUP = "worst_group_accuracy"


class SequenceClassificationTask(Task):
    """Sequence classification with one problem (`framework.tasks.sequence_classification.problem`) per sequence.

    Args:
        max_length: Most tokens of a sequence, special tokens included. Longer texts are truncated at their end; of a
            pair the longer text is truncated.
        pooling: Name in `framework.tasks.pooling`: "cls" or "mean".
        classifier_dropout: Probability of dropping a channel before the classifier.
        problem: "single_label", "multi_label" or "regression".
        best_metric: Metric by which checkpoints are compared: "loss" or a metric of the problem; None: the problem's
            default.
        label_smoothing: Fraction of the target spread over all labels (single_label).
        class_weights: "balanced", {label: weight}, or None (single_label).
        out_of_scope_label: Label of rows that belong to no other label (single_label).
        label_separator: Separator of labels in a cell (multi_label).
        threshold: Probability above which a label is predicted (multi_label).
        group_loss: "worst", or its settings: each group of `data.group_column` has a loss term, and the weights of the
            terms follow their losses; None: one loss term.
        scoring: Keys `projection`, `windows` and `stride`.

    Attributes:
        problem_name: Name of the problem.
        groups: Groups of the data.
        problem: Problem; it knows its labels after `build_sources` or `restore`.
        scoring: Settings of the projection and of windows over long texts.
        has_pairs: True if sequences are pairs of texts; known after `build_sources` or `restore`.

    Raises:
        ConfigError: `max_length` is below 5, `stride` does not fit it, a name is unknown, a probability is out of its
            range, or a setting of another problem is given.
    """

    wraps_epochs = False
    head_kind = "sequence_classification"
    changeable_keys: tuple[str, ...] = ("threshold",)
    allows_augmentation = True
    head_rows: Mapping[str, str] = {"": "sequences"}

    def __init__(
        self,
        max_length: int = 128,
        pooling: str = "cls",
        classifier_dropout: float = 0.1,
        problem: str = "single_label",
        best_metric: str | None = None,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | dict[str, float] | None = None,
        out_of_scope_label: str | int | None = None,
        label_separator: str = "|",
        threshold: float = 0.5,
        group_loss: Literal["worst"] | GroupLoss | None = None,
        scoring: Scoring = Scoring(),  # noqa: B008  it is immutable
    ) -> None:
        check_pooled_scores(max_length, pooling, classifier_dropout)
        check_choice("task.projection", scoring.projection, PROJECTIONS)
        self._stride = scoring.stride_of(max_length)
        self.max_length = max_length
        self.pooling = pooling
        self.classifier_dropout = classifier_dropout
        self.scoring = scoring
        self.allows_augmentation = type(self).allows_augmentation and scoring.windows is None
        settings = {
            "label_smoothing": label_smoothing,
            "class_weights": class_weights,
            "out_of_scope_label": out_of_scope_label,
            "label_separator": label_separator,
            "threshold": threshold,
        }
        self.problem_name = problem
        self.problem = build_problem(problem, settings)
        self.has_pairs = False
        self._is_restored = False
        self.loss_weights = {LOSS_TERM: 1.0}
        self.groups = Groups(has_terms=group_loss is not None)
        self._group_loss = GroupLoss() if isinstance(group_loss, str) else group_loss
        is_worst_best = group_loss is not None and self.problem.has_worst_group
        self.best_metric = best_metric or (WORST_GROUP if is_worst_best else self.problem.best_metric)
        self.best_mode = self._mode_of(self.best_metric)

    def _mode_of(self, metric: str) -> str:
        worst = {WORST_GROUP: "max"} if self.problem.has_worst_group else {}
        modes = {**self.problem.metric_modes, **worst, "loss": "min"}
        if metric not in modes:
            raise ConfigError(
                f"task.best_metric is {metric!r}, which is unknown. Choose one of {', '.join(modes)}, or null."
            )
        return modes[metric]

    @property
    def labels(self) -> tuple[str, ...]:
        """Returns the label set in the order of scores; empty until it is known, and for regression."""
        return self.problem.labels

    def build_sources(self, data: TableData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads and tokenizes the rows of each split; determines the label set unless an earlier run restored it.

        The records of a source are its rows, for comparison with the predictions. The rows of `train` are kept only if
        `keeps_training_rows` is set.
        """
        table = data.with_masks(tokenizer).load(self.labels or None, self.problem.answers)
        self.has_pairs = data.pair_column is not None
        if self.has_pairs and self.scoring.windows is not None:
            raise ConfigError(
                f"task.windows is {self.scoring.windows}, and data.pair_column is {data.pair_column}. Windows need one "
                "text per row. Set task.windows=null, which truncates long pairs, or data.pair_column=null."
            )
        self._learn_groups(table.splits, data)
        if not self.labels:
            self.problem.learn(table.labels, [row.label for row in table.splits["train"]])
        canaries = self._canary_rows(data, tokenizer)
        sources: dict[str, SequenceSource] = {}
        for split, own in table.splits.items():
            rows = [*own, *canaries] if split == "train" else own
            source = self._source(rows, tokenizer, split != "train" or self.keeps_training_rows)
            groups = self.groups.of_rows(rows)
            if data.balance is not None and groups is not None and split == "train":
                source.shuffle = BalancedShuffle.of(groups.indices)
            answers = self.problem.answers
            labels = (label for row in rows for label in answers.labels(row.label))
            read = table.facts[split]
            if not answers.has_labels:
                read = replace(read, notes={"numbers": range_of([row.label for row in rows])})
            if answers.has_several:
                read = replace(read, notes={"rows without a label": f"{sum(not row.label for row in rows):,}"})
            if canaries and split == "train":
                read = _with_canaries(read, canaries)
            sources[split] = with_facts(source, read, labels, self.labels)
        return sources

    def _canary_rows(self, data: TableData, tokenizer: Tokenizer) -> list[LabelledText]:
        """Returns the rows of canaries.

        Raises:
            ConfigError: The problem has not one label for each row.
        """
        if data.canaries and self.problem_name != "single_label":
            raise ConfigError(
                f"data.canaries is {data.canaries}, and task.problem is {self.problem_name}. A canary has one random "
                "label. Set data.canaries=0, or task.problem=single_label."
            )
        return data.canary_rows(tokenizer, self.labels)

    def _learn_groups(self, splits: Mapping[str, Sequence[LabelledText]], data: TableData) -> None:
        self.groups.learn(splits, data, is_restored=self._is_restored)
        if self.best_metric == WORST_GROUP and not self.groups.is_active and not self._is_restored:
            raise ConfigError(
                f"task.best_metric is {WORST_GROUP}, but data.group_column is null. This metric needs the group of "
                "each row. Set data.group_column, or choose another metric."
            )
        terms = self.groups.terms
        self.loss_weights = dict.fromkeys(terms, 1 / len(terms)) if terms else {LOSS_TERM: 1.0}
        self.weight_step_size = self._group_loss.step_size if terms and self._group_loss is not None else None

    def _source(self, rows: Sequence[LabelledText], tokenizer: Tokenizer, keep: bool) -> FlatSource:
        texts = [row.text for row in rows]
        pairs = [row.pair for row in rows if row.pair is not None] or None
        answers = [row.label for row in rows]
        if self.scoring.windows is not None:
            return self._window_source(texts, answers, tokenizer, rows if keep else (), self.groups.of_rows(rows))
        records, keeps_texts = (rows, False) if keep else ((), self.keeps_texts)
        return classification_source(
            texts,
            pairs,
            answers,
            self.problem,
            tokenizer,
            self.max_length,
            records,
            keeps_texts,
            self.groups.of_rows(rows),
        )

    def _window_source(
        self,
        texts: Sequence[str],
        answers: Sequence[Answer | None],
        tokenizer: Tokenizer,
        records: Sequence[LabelledText] = (),
        groups: SequenceGroups | None = None,
    ) -> FlatSource:
        sizes = self.max_length, self._stride
        return window_source(texts, answers, self.problem, tokenizer, *sizes, records, groups)

    @property
    def class_scores(self) -> Mapping[str, str]:
        """Returns the logits of single labels; those of several labels and of numbers are no softmax."""
        return {"logits": "labels"} if self.problem_name == "single_label" else {}

    @property
    def fields(self) -> tuple[str, ...]:
        """Returns the field of the text, and for pairs that of the second text."""
        return ("text", "pair") if self.has_pairs else ("text",)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """Builds one sequence per row, or its windows, without a label."""
        texts = [row.values["text"] for row in rows]
        if self.scoring.windows is not None:
            return self._window_source(texts, [None] * len(texts), tokenizer)
        pairs = [row.values["pair"] for row in rows] if self.has_pairs else None
        return classification_source(texts, pairs, [None] * len(texts), self.problem, tokenizer, self.max_length)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the head with the number of scores of the problem."""
        head = build_sequence_classification_head(
            config, self.problem.num_scores, self.pooling, self.classifier_dropout, self.scoring.projection
        )
        head.window_pooling = self.scoring.windows
        return head

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Returns the problem's loss summed over sequences (`classification`), or over those of each group."""
        losses = self.sequence_losses(outputs, batch)
        if self.groups.terms:
            return self.groups.sums(losses, batch.targets[GROUPS])
        return {LOSS_TERM: losses.sum()}

    def sequence_losses(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
        """Returns the loss of each sequence: (sequences,) fp32, 0 for dummies; `loss_sums` returns its sum."""
        return self.problem.losses(outputs["logits"], batch)

    def build_metrics(self) -> dict[str, Metric]:
        """Builds the metrics of the problem, and the accuracy of the worst group if the data has groups."""
        return self.problem.build_metrics() | self._group_metrics()

    def _group_metrics(self) -> dict[str, Metric]:
        if not (self.groups.is_active and self.problem.has_worst_group):
            return {}
        # torchmetrics takes seconds to import, and predictions need no metrics.
        from framework.metrics.classification import WorstGroupAccuracy

        return {WORST_GROUP: WorstGroupAccuracy(len(self.groups.names))}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        self.problem.update_metrics(metrics, outputs["logits"], batch)
        if WORST_GROUP in metrics:
            metrics[WORST_GROUP].update(outputs["logits"], batch.targets["labels"], batch.targets[GROUPS])

    def to_record(self) -> dict[str, Any]:
        """Returns the problem, label names in the order of scores, pooling, length, and a flag for pairs."""
        return {
            "problem": self.problem_name,
            **self.problem.to_record(),
            **self.groups.to_record(),
            "pooling": self.pooling,
            "max_length": self.max_length,
            "has_pairs": self.has_pairs,
            **({"windows": self.scoring.windows} if self.scoring.windows is not None else {}),
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Restores the label set and the flag for pairs."""
        self.problem.restore(record)
        self.groups.restore(record)
        self._is_restored = True
        self.has_pairs = bool(record.get("has_pairs", False))

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[dict[str, Any]]:
        """Returns the problem's prediction for each sequence, with probabilities if it has any."""
        return self.problem.decode(self._item_logits(outputs, batch))

    def _item_logits(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
        """Returns (items, labels) logits of the real items."""
        logits = outputs["logits"]
        return logits[: batch.num_sequences] if self.scoring.windows is None else first_windows(logits, batch)

    @property
    def explained_labels(self) -> tuple[str, ...]:
        """Returns the labels; for regression the name of the score."""
        return self.problem.explained_labels

    @property
    def single_labels(self) -> tuple[str, ...]:
        """Returns the labels if each sequence has exactly one."""
        return self.problem.single_labels

    def explained(self, source: FlatSource, decoded: Sequence[Any], name: str | None) -> list[list[Explained]]:
        """Returns the predicted labels of each sequence, or the given one, with their columns."""
        names = [self.problem.predicted_labels(each) if name is None else [name] for each in decoded]
        return [
            [Explained(item, self.explained_labels.index(each), each) for each in chosen]
            for item, chosen in enumerate(names)
        ]

    def explained_scores(self, outputs: Mapping[str, Tensor], batch: PackedBatch, targets: Sequence[int]) -> Tensor:
        """Returns the logit of each sequence in its column; for regression the score."""
        return chosen_scores(self._item_logits(outputs, batch), targets)

    def explained_spans(
        self, source: FlatSource, explained: Explained, values: Mapping[str, str], tokenizer: Tokenizer
    ) -> TokenSpans:
        """Locates the tokens in the texts; a token in several windows has several positions with one span."""
        if self.scoring.windows is None:
            return super().explained_spans(source, explained, values, tokenizer)
        return locate_windows(source, explained.item, "text", values["text"], tokenizer, self._stride)

    def class_table(
        self, metrics: Mapping[str, Metric], source: FlatSource, decoded: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Returns precision, recall, F1 and number of sequences of each label."""
        return self.problem.class_table(metrics)

    def examine(self, source: FlatSource, results: ItemResults) -> Examination:
        """Builds the problem's error analysis; for `train`, whose rows are not kept, the analysis without rows."""
        if not source.records:
            return default_examination(results, results.decoded)
        return self.problem.examine(source.records, results)


def _with_canaries(facts: SplitFacts, canaries: Sequence[LabelledText]) -> SplitFacts:
    """Adds the rows of canaries to the facts of the training split; the copies of a canary are one privacy unit."""
    units = {row.location: row.location.partition(",")[0] for row in canaries} if facts.units else {}
    notes = {**facts.notes, "rows of canaries": f"{len(canaries):,}"}
    return replace(facts, rows=facts.rows + len(canaries), notes=notes, units={**facts.units, **units})
