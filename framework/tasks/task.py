"""The task protocol: everything that Cloze needs to know about one use of an encoder.

A task is one object. It turns data into sequences, builds the head, states its loss as sums and counts, and says what
is measured. The module that runs steps, the planner and the callbacks know tasks only through this class.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from framework.batch import PackedBatch
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.norm import LayerNorm
from framework.tasks.examination import Examination, FoundItems, plain_examination


class TaskModel(nn.Module):
    """An encoder and a task head, called as one so that sharding wraps one root."""

    def __init__(self, encoder: TransformerEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(
        self,
        batch: PackedBatch,
        dropout_keys: Tensor | None = None,
        embedding_offset: Tensor | None = None,
        pooling: Callable[[Tensor, PackedBatch], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Runs the encoder and the head, or what stands in for the head.

        Args:
            batch: One packed micro-batch.
            dropout_keys: (tokens,) int64 from `framework.nn.dropout.token_keys`; None switches dropout off.
            embedding_offset: (tokens, hidden) fp32, added to the embeddings; None: nothing is.
            pooling: In place of the head, from hidden states to features; for passes without gradients.

        Returns:
            The head's outputs by name, for example `{"mlm": (targets, vocab), "nsp": (sequences, 2)}`; with a pooling
            `features` (sequences, hidden).
        """
        embeddings = self.encoder.embed(batch, dropout_keys)
        if embedding_offset is not None:
            embeddings = embeddings + embedding_offset
        hidden_states = self.encoder.encode(embeddings, batch, dropout_keys)
        if pooling is None:
            return self.head(hidden_states, batch, dropout_keys)
        # All norms are one group of FSDP2. torch before 2.13 gathers a group anew only after all its modules have run.
        for module in self.head.modules():
            if isinstance(module, LayerNorm):
                module(hidden_states.new_zeros(1, module.weight.shape[0]))
        return {"features": pooling(hidden_states, batch)}


class Task(ABC):
    """One use of an encoder. The loss is a weighted sum of terms; a term is a sum over targets divided by their count.

    Attributes:
        loss_weights: Weight of each loss term, by the term's name; `train/loss` is the weighted sum of the terms.
        best_metric: Validation metric by which checkpoints are compared, without the `val/` prefix.
        best_mode: "min" or "max".
        wraps_epochs: True where steps run across epoch ends (pre-training); False where an epoch ends with a short
            step.
        head_kind: Name of the head in exports.
        allows_augmentation: True where what is predicted of a text stays right if some of its tokens are changed, moved
            or left out: targets are those of whole sequences, in a FlatSource.
        changeable_keys: Config keys that decide how outputs are read or ranked and nothing about weights, so that
            evaluation and prediction may change them; a loss of such ranks changes with them.
        allows_tensor_parallel: False where the head has parts that tensor parallel does not know.
        text_format: Format of input files that are not tables: "conll"; None: there is none.
    """

    loss_weights: Mapping[str, float]
    best_metric: str
    best_mode: str
    wraps_epochs: bool
    head_kind: str
    allows_augmentation: bool = False
    changeable_keys: tuple[str, ...] = ()
    allows_tensor_parallel: bool = True
    text_format: str | None = None

    @abstractmethod
    def build_sources(self, data: Any, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads the data and returns the sequences of each split (`train`, `validation`, where given `test`).

        Raises:
            DataError: A file, row, column or label cannot be used; the message names it.
        """

    @abstractmethod
    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the head; `head(hidden_states (tokens, hidden), batch, dropout_keys)` returns a dict of outputs."""

    @abstractmethod
    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Sum of each loss term over this micro-batch's targets: fp32 scalars. Counts are `batch.counts`.

        Logits of a decoder that shares the word embeddings may lie on several devices; `framework.nn.cross_entropy`
        knows those too.
        """

    def sequence_losses(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor | None:
        """Loss of each sequence: (sequences,) fp32, 0 for dummies; None where the loss is no sum over sequences."""
        del outputs, batch
        return None

    def build_metrics(self) -> dict[str, Metric]:
        """Fresh validation metrics by name (beside the loss terms, which every task gets)."""
        return {}

    def update_metrics(  # noqa: B027  a task may have none
        self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch
    ) -> None:
        """Feeds one micro-batch into the metrics, real targets only."""

    @property
    def validation_weights(self) -> Mapping[str, float]:
        """Weights of the terms that make `val/loss`: all of them, but for what only steadies the training."""
        return self.loss_weights

    @property
    def class_scores(self) -> Mapping[str, str]:
        """Outputs that are logits of a softmax over their last dim, each with the name of its targets.

        Several passes over one batch may be asked to agree on them (R-Drop). The targets have the other dims of the
        logits; those with IGNORE_INDEX do not count. A task whose outputs are no such logits has none.
        """
        return {"logits": "labels"}

    def side_config(self) -> dict[str, Any]:
        """What an export must keep so that predictions can be read: label names, pooling, lengths."""
        return {}

    def restore(self, side: Mapping[str, Any]) -> None:  # noqa: B027  a task that finds nothing in its data keeps nothing
        """Takes back what `side_config` gave: before `build_sources` or `build_head` in evaluation and prediction."""

    def side_files(self) -> dict[str, str]:
        """What prediction needs beside `side_config` and is too much for it: texts by file name, kept beside the run.

        Known after `build_sources` or `restore_files`.
        """
        return {}

    def restore_files(self, folder: Path) -> None:  # noqa: B027  most tasks have none
        """Is told in which folder `side_files` lie: after `restore`; they may be read when they are needed."""

    @property
    def fields(self) -> tuple[str, ...]:
        """What prediction reads of each row, by the names of columns; known after `restore`."""
        return ()

    @property
    def field_choices(self) -> tuple[tuple[str, ...], ...]:
        """Returns the alternative sets of fields that prediction reads from a row; the first is `fields`."""
        return (self.fields,)

    @property
    def list_fields(self) -> tuple[str, ...]:
        """Those of `fields` whose values may be lists; they come as JSON."""
        return ()

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:  # noqa: B027  most tasks predict any text
        """Checks one row to predict.

        Args:
            row: Row with values for one of `field_choices`.
            tokenizer: Tokenizer of the model.

        Raises:
            DataError: The row cannot be predicted; the message begins with `row.place`.
        """

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> SequenceSource:
        """The items of rows to predict, in their order; a row may give several (windows of a long text).

        Args:
            rows: Rows with values for one of `field_choices`; each has passed `check_row`.
            tokenizer: Gives ids and special tokens.

        Raises:
            ConfigError: The task does not predict rows.
        """
        raise ConfigError(f"{type(self).__name__} does not predict texts; give a run or export that was fine-tuned.")

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[Any]:
        """What is kept of one micro-batch: an object for each real item, in their order, on the host.

        Raises:
            ConfigError: The task does not predict rows.
        """
        raise ConfigError(f"{type(self).__name__} does not predict texts; give a run or export that was fine-tuned.")

    @property
    def predicts_rows(self) -> bool:
        """Whether there is a `decode`."""
        return type(self).decode is not Task.decode

    @property
    def examines_splits(self) -> bool:
        """Returns True if `examine` shows the rows of a split; by default for tasks that predict rows."""
        return self.predicts_rows

    def assemble(self, source: SequenceSource, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """Predictions, one for each row of `build_source`, as values for JSON.

        Args:
            source: What was run.
            decoded: Of `decode`, one for each item of the source, in its order.
        """
        del source
        return list(decoded)

    @property
    def scores_predictions(self) -> bool:
        """Whether `score` is asked for: evaluation then decodes every item of a split, and brings them together."""
        return False

    def score(self, source: SequenceSource, decoded: Sequence[Any]) -> dict[str, float]:
        """Metrics of a whole split that are no sums over its items, beside those of `build_metrics`.

        Args:
            source: The split.
            decoded: As for `assemble`, of all ranks.
        """
        del source, decoded
        return {}

    def class_table(
        self, metrics: Mapping[str, Metric], source: SequenceSource, decoded: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """What evaluation found for each class, one row a class; empty where a task has none."""
        del metrics, source, decoded
        return []

    def examine(self, source: SequenceSource, found: FoundItems) -> Examination:
        """What people look at who want to know where the model is wrong; for tasks that predict rows.

        A task that says nothing else gets losses by length and its worst items, with their tokens and predictions.

        Args:
            source: A split that `build_sources` made.
            found: For its items.
        """
        return plain_examination(found, self.assemble(source, found.decoded))
