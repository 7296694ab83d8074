"""The task protocol: everything that Cloze needs to know about one use of an encoder.

A task is one object. It converts data to sequences, builds the head, states its loss as sums and counts, and defines
the metrics. The module that runs steps, the planner and the callbacks use tasks only through this class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.metrics.row_ratio import RowRatio
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.norm import LayerNorm
from framework.tasks.examination import Examination, ItemResults, default_examination
from framework.tasks.explained_fields import ExplainedFields
from framework.tasks.rewriting import RewritingHead

if TYPE_CHECKING:
    from torchmetrics import Metric

_RENAMED = {"side_config": "to_record", "side_files": "extra_files"}
"""New names of methods that a task may override, by their old names."""

_PREDICTS_NO_TEXTS = (
    "does not predict texts. Prediction needs a fine-tuned model. Give a run or export that was fine-tuned."
)


class TaskModel(nn.Module):
    """An encoder and a task head in one module, so that sharding wraps a single root.

    Attributes:
        distillation: Trained projections to the width of a teacher, which belong to no export; None: there are none.
    """

    def __init__(self, encoder: TransformerEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.distillation: nn.ModuleDict | None = None

    def forward(
        self,
        batch: PackedBatch,
        dropout_keys: Tensor | None = None,
        embedding_offset: Tensor | None = None,
        pooling: Callable[[Tensor, PackedBatch], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Runs the encoder, then the head or a pooling instead of it.

        Args:
            batch: One packed micro-batch.
            dropout_keys: (tokens,) int64 from `framework.nn.dropout.token_keys`; None disables dropout.
            embedding_offset: (tokens, hidden) fp32, added to the embeddings; None adds nothing.
            pooling: Function from hidden states to features that replaces the head, for passes without gradients.

        Returns:
            The head's outputs by name, for example `{"mlm": (targets, vocab), "nsp": (sequences, 2)}`; with a pooling
            only `features` (sequences, hidden).
        """
        outputs: dict[str, Tensor] = {}
        if pooling is None and isinstance(self.head, RewritingHead):
            batch, outputs = self.head.rewrite(self.encoder, batch, dropout_keys)
        embeddings = self.encoder.embed(batch, dropout_keys)
        if embedding_offset is not None:
            embeddings = embeddings + embedding_offset
        hidden_states = self.encoder.encode(embeddings, batch, dropout_keys)
        if pooling is None:
            outputs |= self.head(hidden_states, batch, dropout_keys)
            # FSDP2 puts its hooks on outputs, and an in-place operator on a view would drop them.
            return {name: output.clone() if output._is_view() else output for name, output in outputs.items()}
        # All norms are one group of FSDP2. torch before 2.13 gathers a group anew only after all its modules have run.
        for module in self.head.modules():
            if isinstance(module, LayerNorm):
                module.run_idle(hidden_states)
        return {"features": pooling(hidden_states, batch)}


class Task(ExplainedFields, ABC):
    """One use of an encoder. The loss is a weighted sum of terms; a term is a sum over targets divided by their count.

    Attributes:
        loss_weights: Weight of each loss term, by the term's name; `train/loss` is the weighted sum of the terms.
        weight_step_size: Step size by which the weights of the terms follow their losses during training, from
            `loss_weights` on (Group DRO, `framework.modules.passes.term_weights`); None: the weights are constant.
        best_metric: Validation metric by which checkpoints are compared, without the `val/` prefix.
        best_mode: "min" or "max".
        wraps_epochs: True if steps cross epoch ends (pre-training); False if each epoch ends with a short step.
        head_kind: Name of the head in exports.
        allows_augmentation: True if targets stay valid when some tokens of a text are changed, moved or dropped. The
            targets then belong to whole sequences of a FlatSource.
        keeps_texts: True if `build_sources` must keep `FlatSource.texts` of `train`, which an augmentation rewrites.
        changeable_keys: Config keys that affect only how outputs are read or ranked, not the weights. Evaluation and
            prediction may change them; a loss that depends on such ranks changes with them.
        allows_tensor_parallel: False if the head has modules that tensor parallel does not support.
        vocabulary_term: Loss term whose targets are predicted over the vocabulary; None: there is none.
        text_format: Format of input files that are not tables: "conll"; None: only tables.
        list_fields: The `fields` whose values may be lists, which are passed as JSON.
        keeps_training_rows: True if the records of the split `train` must be kept, which costs memory. Commands that
            show training rows set it before `build_sources`. Each record has a `location`.
        head_rows: Meaning of the rows of activations in the head, by name of a module in it ("": all others): "tokens",
            "sequences", or the name of a target with the index of each row's token. Privacy needs it, and
            `sequence_losses`; a task without it cannot be trained with privacy.
        patch_size: Edge of a patch in pixels; 0: the task reads no pictures, and the encoder has no patch embeddings.
        required_weights: Reasons why starting weights must hold parameters of the head, by prefix of their names.
        scores_predictions: True if evaluation must decode all items of a split and gather them for `score`.
    """

    loss_weights: Mapping[str, float]
    best_metric: str
    best_mode: str
    wraps_epochs: bool
    head_kind: str
    weight_step_size: float | None = None
    allows_augmentation: bool = False
    keeps_texts: bool = False
    changeable_keys: tuple[str, ...] = ()
    allows_tensor_parallel: bool = True
    vocabulary_term: str | None = None
    text_format: str | None = None
    list_fields: tuple[str, ...] = ()
    keeps_training_rows: bool = False
    head_rows: Mapping[str, str] = {}
    patch_size: int = 0
    scores_predictions: bool = False
    required_weights: Mapping[str, str] = {}

    def __init_subclass__(cls) -> None:
        """Rejects a task that overrides methods by the names they had before 2026-11-30, which nothing calls.

        Raises:
            ConfigError: The class defines such a method.
        """
        super().__init_subclass__()
        for old, new in _RENAMED.items():
            if old in vars(cls):
                raise ConfigError(
                    f"{cls.__module__}.{cls.__qualname__} defines {old}, which Cloze no longer calls. The method is "
                    f"now called {new}. Rename it."
                )

    @abstractmethod
    def build_sources(self, data: Any, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads the data and returns the sequences of each split (`train`, `validation` and, if given, `test`).

        Args:
            data: Settings of the data, of the class that the task reads.
            tokenizer: Tokenizer of the model.
            seed: Seed of the run, for draws of each step such as masks. Splits use the seed of the data, so that runs
                with different seeds are comparable.

        Raises:
            DataError: A file, row, column or label cannot be used; the message names it.
        """

    @abstractmethod
    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the head; `head(hidden_states (tokens, hidden), batch, dropout_keys)` returns a dict of outputs."""

    @abstractmethod
    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Returns the sum of each loss term over this micro-batch's targets: fp32 scalars. Counts are `batch.counts`.

        Logits of a decoder that shares the word embeddings may be sharded over several devices;
        `framework.nn.cross_entropy` supports that.
        """

    def sequence_losses(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor | None:
        """Returns the loss of each sequence: (sequences,) fp32, 0 for dummies; None if the loss is no such sum."""
        return None

    def build_metrics(self) -> dict[str, Metric]:
        """Builds new validation metrics by name, in addition to the loss terms that every task has."""
        return {}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Adds the real targets of one micro-batch to the metrics."""

    @property
    def validation_weights(self) -> Mapping[str, float]:
        """Returns the weights of the terms in `val/loss`: all terms except those that only stabilize the training."""
        return self.loss_weights

    @property
    def class_scores(self) -> Mapping[str, str]:
        """Returns the outputs that are logits of a softmax over their last dim, with the name of their targets.

        R-Drop compares these outputs between two passes over one batch. The targets have the other dims of the logits;
        those with IGNORE_INDEX do not count. A task without such logits returns an empty mapping.
        """
        return {"logits": "labels"}

    def to_record(self) -> dict[str, Any]:
        """Returns the values that runs and exports save for prediction, such as label names, pooling and lengths."""
        return {}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Restores the values of `to_record`; evaluation and prediction call it before the other methods."""

    def extra_files(self) -> dict[str, str]:
        """Returns the text of further files that prediction needs, by file name; they are too large for `to_record`.

        The files are saved in the run folder. They are known after `build_sources` or `restore_files`.
        """
        return {}

    def restore_files(self, folder: Path) -> None:
        """Sets the folder that contains the `extra_files`. It is called after `restore`; reading may be lazy."""

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks one row to predict.

        Args:
            row: Row with values for one of `field_choices`.
            tokenizer: Tokenizer of the model.

        Raises:
            DataError: The row cannot be predicted; the message begins with `row.location`.
        """

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> SequenceSource:
        """Builds the items of rows to predict, in row order; a row may have several (windows of a long text).

        Args:
            rows: Rows with values for one of `field_choices`; each has passed `check_row`.
            tokenizer: Tokenizer of the model.

        Raises:
            ConfigError: The task does not predict rows.
        """
        raise ConfigError(f"{type(self).__name__} {_PREDICTS_NO_TEXTS}")

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[Any]:
        """Converts the outputs of one micro-batch to one object per real item, in their order, on the host.

        Raises:
            ConfigError: The task does not predict rows.
        """
        raise ConfigError(f"{type(self).__name__} {_PREDICTS_NO_TEXTS}")

    @property
    def single_labels(self) -> tuple[str, ...]:
        """Returns the labels of which each prediction has exactly one, `label`, with the `probabilities` of all labels.

        They are known after `restore`. A task with other predictions returns an empty tuple.
        """
        return ()

    @property
    def predicts_rows(self) -> bool:
        """Returns True if the task implements `decode`."""
        return type(self).decode is not Task.decode

    @property
    def examines_splits(self) -> bool:
        """Returns True if `examine` shows the rows of a split; by default for tasks that predict rows."""
        return self.predicts_rows

    def assemble(self, source: Any, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns the predictions as JSON values, one for each row of `build_source`.

        Args:
            source: Source whose items were predicted, of the class that the task builds.
            decoded: Objects of `decode`, one per item of the source, in its order.
        """
        return list(decoded)

    def score(self, source: Any, decoded: Sequence[Any]) -> dict[str, float]:
        """Computes metrics of a whole split that are not sums over its items, in addition to `build_metrics`.

        By default these are the metrics of `row_metrics`.

        Args:
            source: The split.
            decoded: Objects of `decode` from all ranks, one per item of the source, in its order.
        """
        return {name: ratio.total() for name, ratio in self.row_metrics(source, decoded).items()}

    def row_metrics(self, source: Any, decoded: Sequence[Any]) -> Mapping[str, RowRatio]:
        """Returns metrics of `score` that can be computed for any choice of the rows, such as a group of people.

        A row may have several items, such as windows of a long text, which are adjacent. The records of the source
        then have the index of their `row`.

        Args:
            source: The split.
            decoded: Objects of `decode`, one per item of the source, in its order.
        """
        return {}

    @property
    def measures_rows(self) -> bool:
        """Returns True if the metrics of the task can be computed for any choice of the rows."""
        return not self.scores_predictions or type(self).row_metrics is not Task.row_metrics

    def class_table(self, metrics: Mapping[str, Metric], source: Any, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns one row of scores per class; empty for tasks without classes."""
        return []

    def examine(self, source: Any, results: ItemResults) -> Examination:
        """Returns the content of the error analysis, for tasks that predict rows.

        By default it contains losses by length and the worst items, with their tokens and predictions.

        Args:
            source: A split from `build_sources`.
            results: Predictions, losses and lengths of its items.
        """
        return default_examination(results, self.assemble(source, results.decoded))
