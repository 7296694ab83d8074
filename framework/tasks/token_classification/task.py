"""Token classification: a tag for each word (Devlin et al. 2019, arXiv:1810.04805, section 5.3), entities in BIO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.facts import with_facts
from framework.data.flat_source import FlatSource
from framework.data.layout import SHORTEST, check_max_length
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.written_text import join_words
from framework.errors import ConfigError, check_fraction
from framework.metrics.entity_f1 import EntityCounts, count_entities, entity_ratios
from framework.metrics.row_ratio import RowRatio
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.cross_entropy import at_least_fp32, cross_entropy_sum
from framework.tasks.examination import Examination, ItemResults
from framework.tasks.explanation import Explained, TokenSpans
from framework.tasks.task import Task
from framework.tasks.token_classification.data import TaggedData
from framework.tasks.token_classification.decode import bio_tag_set, entities_of, join_parts, predict_tags
from framework.tasks.token_classification.examine import examine_entities
from framework.tasks.token_classification.explain import (
    EntityLogits,
    explained_entities,
    locate_words,
    mean_logits,
)
from framework.tasks.token_classification.features import Example, parse_words, tagging_source
from framework.tasks.token_classification.head import build_token_classification_head
from framework.tasks.token_classification.text_units import Units, split_units

if TYPE_CHECKING:
    from torchmetrics import Metric


class TokenClassificationTask(Task):
    """Entity recognition with one BIO tag per word. Decoded tags always follow the BIO rules.

    Args:
        max_length: Maximum number of tokens of a sequence, special tokens included. A longer sentence is split into
            several sequences.
        stride: Tokens from the start of one of these sequences to the start of the next.
        units: Units of a text that are tagged: "words", "white_space" or "characters"
            (`framework.tasks.token_classification.text_units`).
        classifier_dropout: Probability of dropping a channel before the classifier.

    Attributes:
        tags: Tag set in the order of scores. Empty before `build_sources` or `restore`.

    Raises:
        ConfigError: `max_length` is below 3, `stride` is not in 1 to `max_length` - 2, or `classifier_dropout` is not
            in [0, 1).
    """

    best_metric = "entity_f1"
    best_mode = "max"
    wraps_epochs = False
    head_kind = "token_classification"
    fields = ("text",)
    field_choices = ("text",), ("tokens",)
    list_fields = ("tokens",)
    scores_predictions = True
    text_format = "conll"
    head_rows: Mapping[str, str] = {"": "tokens"}

    def __init__(
        self, max_length: int = 128, stride: int = 64, units: Units = "words", classifier_dropout: float = 0.1
    ) -> None:
        check_max_length("task.max_length", max_length, SHORTEST)
        if not 1 <= stride <= max_length - 2:
            raise ConfigError(
                f"task.stride is {stride}. It must be at least 1 and at most task.max_length - 2, here "
                f"{max_length - 2}. Change one of them."
            )
        check_fraction("task.classifier_dropout", classifier_dropout)
        self.max_length = max_length
        self.stride = stride
        self.units = units
        self.classifier_dropout = classifier_dropout
        self.tags: tuple[str, ...] = ()
        self.loss_weights = {"tags": 1.0}

    @property
    def types(self) -> tuple[str, ...]:
        """Returns the entity types, in the order of scores."""
        return tuple(tag[2:] for tag in self.tags if tag.startswith("B-"))

    def build_sources(self, data: TaggedData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads and tokenizes the sentences of each split. Uses the entity types of an earlier run, or of the data."""
        corpus = data.with_masks(tokenizer).load(self.units, self.types or None)
        self.tags = bio_tag_set(corpus.labels)
        sources: dict[str, SequenceSource] = {}
        for split, sentences in corpus.splits.items():
            examples = [Example(each.words, each.tags, location=each.location) for each in sentences]
            entities = (tag[2:] for each in sentences for tag in each.tags if tag.startswith("B-"))
            sources[split] = with_facts(self._source(examples, tokenizer), corpus.facts[split], entities, corpus.labels)
        return sources

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks that the words of a row are a list of texts."""
        self._example(row)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """Builds one sequence per text or list of words, or several if it is long."""
        return self._source([self._example(row) for row in rows], tokenizer)

    def _example(self, row: Row) -> Example:
        if "tokens" in row.values:
            return Example(parse_words(row.location, row.values["tokens"]), location=row.location)
        units = split_units(row.values["text"], self.units)
        return Example([unit.text for unit in units], None, row.values["text"], units)

    def _source(self, examples: Sequence[Example], tokenizer: Tokenizer) -> FlatSource:
        return tagging_source(examples, self.tags, tokenizer, self.max_length, self.stride)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the head of the encoder's model family, with one score per tag."""
        return build_token_classification_head(config, len(self.tags), self.classifier_dropout)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Sums the cross-entropy over words (`tags`)."""
        return {"tags": cross_entropy_sum(outputs["logits"], batch.targets["labels"])}

    def sequence_losses(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
        """Returns the mean cross-entropy over the words that a sequence predicts: (sequences,) fp32, 0 if no word."""
        labels = batch.targets["labels"]
        losses = nn.functional.cross_entropy(
            at_least_fp32(outputs["logits"]), labels, ignore_index=IGNORE_INDEX, reduction="none"
        )
        sums, counts = (
            _sequence_sums(values, batch) for values in (losses.double(), (labels != IGNORE_INDEX).double())
        )
        return (sums / counts.clamp(min=1)).to(losses.dtype)

    def to_record(self) -> dict[str, Any]:
        """Returns the tag set in the order of scores, the lengths and the units."""
        return {
            "labels": list(self.tags),
            "max_length": self.max_length,
            "stride": self.stride,
            "units": self.units,
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Restores the tag set of an earlier run."""
        self.tags = tuple(str(label) for label in record["labels"])

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[np.ndarray]:
        """Returns (words, labels) fp32 log-probabilities per sequence, for the words that the sequence predicts."""
        is_word = batch.targets["is_word"] > 0
        scores = outputs["logits"][is_word].float().log_softmax(dim=-1).cpu().numpy()
        counts = _sequence_sums(is_word.long(), batch)[: batch.num_sequences].tolist()
        return np.split(scores, np.cumsum(counts))[:-1]  # the last piece is always empty

    def assemble(self, source: FlatSource, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns `entities`, `tokens` and `tags` of each row.

        Offsets of entities count code points of a text, or words if the row is a list of words.
        """
        examples, scores = join_parts(source.records, decoded)
        paths = predict_tags(scores, self.tags)
        return [
            {
                "entities": entities_of(example, each, path, self.tags, self._join),
                "tokens": list(example.words),
                "tags": [self.tags[index] for index in path],
            }
            for example, each, path in zip(examples, scores, paths, strict=True)
        ]

    @property
    def _join(self) -> Callable[[Sequence[str]], str]:
        return "".join if self.units == "characters" else join_words

    @property
    def explained_labels(self) -> tuple[str, ...]:
        """Returns the entity types; choosing one explains the predicted entities of this type."""
        return self.types

    def explained(self, source: FlatSource, decoded: Sequence[Any], name: str | None) -> list[list[Explained]]:
        """Returns the predicted entities of each row, or those of one type (`explained_entities`)."""
        rows = explained_entities(source, decoded, self.tags)
        return [[each for each in row if name in (None, each.name)] for row in rows]

    def explained_scores(
        self, outputs: Mapping[str, Tensor], batch: PackedBatch, targets: Sequence[EntityLogits]
    ) -> Tensor:
        """Returns the mean of the logits of each entity's tags at its words."""
        return mean_logits(outputs["logits"], batch, targets)

    def explained_spans(
        self, source: FlatSource, explained: Explained, values: Mapping[str, str], tokenizer: Tokenizer
    ) -> TokenSpans:
        """Locates each token at its word: by characters of a text, or by its index in a list of words."""
        return locate_words(source, explained.item, tokenizer)

    def row_metrics(self, source: FlatSource, decoded: Sequence[Any]) -> dict[str, RowRatio]:
        """Returns precision, recall and F1 of all entities, and the share of words with the correct tag.

        `argmax_entity_f1` takes the tag with the largest score of each word and ignores the BIO rules, as other
        libraries do.
        """
        present, predicted = self._true_and_predicted(source, decoded)
        num_correct = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(present, predicted, strict=True)]
        words = np.array([len(tags) for tags in present], dtype=np.float64)
        return {
            **{f"entity_{name}": ratio for name, ratio in entity_ratios(present, predicted).items()},
            "argmax_entity_f1": entity_ratios(present, self._largest_scores(source, decoded))["f1"],
            "token_accuracy": RowRatio(np.array(num_correct, dtype=np.float64), words),
        }

    def class_table(
        self, metrics: Mapping[str, Metric], source: FlatSource, decoded: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Returns precision, recall, F1 and number of entities of each type."""
        counts: dict[str, EntityCounts] = count_entities(*self._true_and_predicted(source, decoded), self.types)
        return [
            {
                "label": label,
                "precision": each.precision,
                "recall": each.recall,
                "f1": each.f1,
                "predicted": each.predicted,
                "entities": each.present,
            }
            for label, each in counts.items()
        ]

    def examine(self, source: FlatSource, results: ItemResults) -> Examination:
        """Builds one row per sentence with its entities, see `examine_entities`."""
        return examine_entities(source.records, results, self.tags, self.types, self._join)

    def _true_and_predicted(
        self, source: FlatSource, decoded: Sequence[Any]
    ) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
        """Returns the tags of each sentence in the data, and the predicted tags."""
        examples, scores = join_parts(source.records, decoded)
        predicted = [[self.tags[index] for index in path] for path in predict_tags(scores, self.tags)]
        return [example.tags or () for example in examples], list(predicted)

    def _largest_scores(self, source: FlatSource, decoded: Sequence[Any]) -> list[Sequence[str]]:
        """Returns the tag with the largest score of each word, regardless of its neighbors."""
        _, scores = join_parts(source.records, decoded)
        return [[self.tags[index] for index in each.argmax(axis=1)] for each in scores]


def _sequence_sums(values: Tensor, batch: PackedBatch) -> Tensor:
    """Sums (tokens,) values over the tokens of each sequence, to (sequences,)."""
    totals = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return totals[batch.cu_seqlens[1:].long()] - totals[batch.cu_seqlens[:-1].long()]
