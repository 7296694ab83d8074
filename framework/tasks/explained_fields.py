"""Part of the task protocol: the fields of a row, and the scores that explanations attribute to the words of fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from framework.batch import PackedBatch
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.tasks.explanation import Explained, TokenSpans, locate_texts, one_item

_EXPLAINABLE = (
    "Classification, regression, relation extraction, question answering, token classification, multiple choice, "
    "reranking and embeddings of pairs have such scores. Explain a run of such a task."
)


class ExplainedFields:
    """Base of `Task`. A task without `explained_scores` has no explanations."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Returns the names of the columns that prediction reads from each row; known after `restore`."""
        return ()

    @property
    def field_choices(self) -> tuple[tuple[str, ...], ...]:
        """Returns the alternative sets of fields that prediction reads from a row; the first is `fields`."""
        return (self.fields,)

    @property
    def explains_predictions(self) -> bool:
        """Returns True if the class implements `explained_scores`."""
        return type(self).explained_scores is not ExplainedFields.explained_scores

    @property
    def explained_fields(self) -> tuple[tuple[str, ...], ...]:
        """Returns the alternative sets of fields that an explanation reads from a row; known after `restore`."""
        return self.field_choices

    @property
    def explained_labels(self) -> tuple[str, ...]:
        """Returns the names by which scores can be chosen, such as labels; known after `restore`.

        A task whose scores have no such names, such as answer spans, returns an empty tuple.
        """
        return ()

    def explained(self, source: Any, decoded: Sequence[Any], name: str | None) -> list[list[Explained]]:
        """Chooses the scores to explain.

        Args:
            source: Source from `build_source`.
            decoded: Objects of `decode`, one per item of the source, in its order.
            name: One of `explained_labels`; None: the predictions themselves.

        Returns:
            For each row of the source its scores. A row may have none, such as a text without entities.

        Raises:
            ConfigError: The task has no scores to explain.
        """
        raise ConfigError(f"{type(self).__name__} has no scores to explain. {_EXPLAINABLE}")

    def explained_scores(self, outputs: Mapping[str, Tensor], batch: PackedBatch, targets: Sequence[Any]) -> Tensor:
        """Returns the score that an explanation attributes to words, for each item: (items,) fp32 with a gradient.

        Args:
            outputs: Outputs of the head.
            batch: Micro-batch of the outputs.
            targets: Target of each real item, from `explained`.

        Raises:
            ConfigError: The task has no scores to explain.
        """
        raise ConfigError(f"{type(self).__name__} has no scores to explain. {_EXPLAINABLE}")

    def explained_spans(
        self, source: Any, explained: Explained, values: Mapping[str, str], tokenizer: Tokenizer
    ) -> TokenSpans:
        """Locates the tokens of an item in the texts of its row.

        By default the item has one sequence of the texts in `fields`, each truncated at its end.

        Args:
            source: Source from `build_source`.
            explained: Explained score.
            values: Values of the row by field.
            tokenizer: Tokenizer of the model.
        """
        ids = one_item(source, explained.item).input_ids.numpy()
        return locate_texts(ids, {name: values[name] for name in self.fields}, tokenizer)
