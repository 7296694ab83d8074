"""Reranking by a cross-encoder: query and document are read together, and each pair gets one relevance score.

Nogueira, Cho 2019 (arXiv:1901.04085); `CrossEncoder` in sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.examples.answers import require_text
from framework.data.examples.splits import ReadSplits
from framework.data.facts import with_facts
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError, check_above_zero, check_at_least, check_choice
from framework.metrics.row_ratio import RowRatio
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.published.kinds import REGRESSION, RERANKS_KEY, SEQUENCE_CLASSIFICATION
from framework.tasks.examination import Examination, ItemResults
from framework.tasks.explanation import Explained, TokenSpans
from framework.tasks.pooling import check_pooled_scores
from framework.tasks.reranking.candidates import (
    CandidateList,
    candidates_of_rows,
    check_documents,
    shortened,
    texts_of,
)
from framework.tasks.reranking.data import CandidateData
from framework.tasks.reranking.features import by_list, candidate_source, list_index, locate_candidate
from framework.tasks.reranking.objectives import build_objectives
from framework.tasks.reranking.scores import examine_lists, metrics_by_list, ranks_of
from framework.tasks.sequence_classification.decode import chosen_scores
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import Task


class RerankingTask(Task):
    """Scores of the candidates of a query; any number of candidates, one or several of them relevant.

    Args:
        loss: Name of a loss in `framework.tasks.reranking.objectives`: "pointwise", "pairwise", "listwise" or "lambda"
            for relevance, "adr_mse", "margin_mse" or "kl" for the scores of a teacher.
        positive_weight: For "pointwise": weight of relevance.
        temperature: For "kl": temperature of both distributions.
        max_length: Most tokens of a query with a document, special tokens included.
        pooling: Name in `framework.tasks.pooling`: "cls" or "mean".
        classifier_dropout: Probability of dropping a channel before the classifier.
        top_k: Number of ranks that count for nDCG and MRR.

    Raises:
        ConfigError: A name is unknown, a number is out of range, or a setting belongs to another loss.
    """

    best_mode = "max"
    wraps_epochs = False
    head_kind = SEQUENCE_CLASSIFICATION.name
    fields = ("query", "documents")
    list_fields = ("documents",)
    allows_augmentation = True
    scores_predictions = True
    changeable_keys = ("top_k",)
    head_rows: Mapping[str, str] = {"": "sequences"}

    def __init__(
        self,
        loss: str = "pointwise",
        positive_weight: float = 1.0,
        temperature: float = 1.0,
        max_length: int = 256,
        pooling: str = "cls",
        classifier_dropout: float = 0.1,
        top_k: int = 10,
    ) -> None:
        check_choice("task.loss", loss, tuple(build_objectives()))
        for name, value, owner in (
            ("positive_weight", positive_weight, "pointwise"),
            ("temperature", temperature, "kl"),
        ):
            check_above_zero(f"task.{name}", value, 1.0)
            if value != 1.0 and loss != owner:
                raise ConfigError(
                    f"task.{name} is {value}, but task.loss is {loss}. Only the loss {owner} has this setting. Set it "
                    f"to 1, or choose task.loss={owner}."
                )
        check_pooled_scores(max_length, pooling, classifier_dropout)
        check_at_least("task.top_k", top_k, 1, "Choose for example 10.")
        self.loss = loss
        self.objective = build_objectives(positive_weight, temperature)[loss]
        self.max_length = max_length
        self.pooling = pooling
        self.classifier_dropout = classifier_dropout
        self.top_k = top_k
        self.loss_weights = {loss: 1.0}
        self.best_metric = f"ndcg_at_{top_k}"

    def build_sources(self, data: CandidateData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads and tokenizes the lists of each split.

        Raises:
            ConfigError: The loss reads a teacher and the data has none, or the other way round.
            DataError: The relevance of a document is not in [0, 1], which "pointwise" needs, or there is nothing to
                learn because all candidates of each query are equally good.
        """
        self._check_teacher(data)
        read = data.with_masks(tokenizer).load()
        self._check_relevance(read)
        return {
            split: with_facts(
                self._source(lists, tokenizer, self.keeps_texts and split == "train"),
                replace(read.facts[split], notes={"candidates": _sizes(lists)}),
            )
            for split, lists in read.splits.items()
        }

    def _source(self, lists: Sequence[CandidateList], tokenizer: Tokenizer, keeps_texts: bool = False) -> FlatSource:
        return candidate_source(lists, tokenizer, self.max_length, self.loss, self.objective.count, keeps_texts)

    def _check_teacher(self, data: CandidateData) -> None:
        reads = self.objective.reads_teacher
        if reads and data.teacher_column is None:
            raise ConfigError(
                f"task.loss is {self.loss}, but data.teacher_column is null. This loss follows the scores of a "
                "teacher. Name their column, or choose another loss, for example task.loss=listwise."
            )
        # Without labels, the teacher decides which document is relevant.
        is_used = data.document_column is not None and data.label_column is None
        if not reads and data.teacher_column is not None and not is_used:
            raise ConfigError(
                f"data.teacher_column is {data.teacher_column}, but task.loss is {self.loss}, which follows relevance. "
                "Set data.teacher_column=null, or choose task.loss=margin_mse, kl or adr_mse."
            )

    def _check_relevance(self, read: ReadSplits[CandidateList]) -> None:
        for lists in read.splits.values():
            for each in lists:
                largest = max(each.relevance or (0.0,))
                if self.objective.needs_shares and largest > 1:
                    raise DataError(
                        f"{each.location}: a document of the query {shortened(each.query)} has the relevance "
                        f"{largest:g}. task.loss={self.loss} needs values from 0 to 1. Scale them, or choose "
                        "task.loss=lambda, listwise or pairwise."
                    )
        train = read.splits["train"]
        if self.objective.needs_shares:
            can_learn = len({value for each in train for value in each.relevance or ()}) > 1
        elif self.objective.reads_teacher:
            can_learn = any(len(each.documents) > 1 for each in train)
        else:
            can_learn = any(len(set(each.relevance or ())) > 1 for each in train)
        if not can_learn:
            raise DataError(
                f"{train[0].location}: no training query has candidates of different relevance. The loss {self.loss} "
                "needs relevant and irrelevant documents. Add irrelevant ones, for example data.negative_columns."
            )

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks that the query is a text, and that the documents are a text or a list of different texts."""
        self._list(row)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """Builds an item for each document, because scores do not depend on each other and lists may be long."""
        lists = [self._list(row) for row in rows]
        parts = [
            replace(each, documents=(document,), row=row)
            for row, each in enumerate(lists)
            for document in each.documents
        ]
        return candidate_source(parts, tokenizer, self.max_length, self.loss)

    def pair_source(self, pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> FlatSource:
        """Builds an item for each pair of a query and a document; `decode` returns a list with its score.

        Args:
            pairs: Queries with a document; the same pair may occur several times.
            tokenizer: Tokenizer of the model.
        """
        lists = [
            CandidateList(f"pair {index}", query, (document,)) for index, (query, document) in enumerate(pairs, start=1)
        ]
        return candidate_source(lists, tokenizer, self.max_length, self.loss)

    def _list(self, row: Row) -> CandidateList:
        query = require_text(row.location, "query", row.values["query"])
        documents = texts_of(
            row.location, "documents", require_text(row.location, "documents", row.values["documents"])
        )
        if not documents:
            raise DataError(f"{row.location}: 'documents' is an empty list. A query needs candidates. Add one.")
        return CandidateList(row.location, query, check_documents(row.location, documents))

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the family's head of sequence classification with one score."""
        return build_sequence_classification_head(config, 1, self.pooling, self.classifier_dropout)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Returns the sum of the losses of the lists, under the name of the loss."""
        return {self.loss: self.objective.losses(by_list(outputs["logits"], batch)).sum()}

    def sequence_losses(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
        """Returns (sequences,) fp32: the loss of a list at its first candidate, 0 at all others."""
        losses = self.objective.losses(by_list(outputs["logits"], batch))
        return torch.where(batch.targets["places"] == 0, losses[list_index(batch)], 0.0)

    @property
    def class_scores(self) -> Mapping[str, str]:
        """Returns an empty mapping, because scores are no logits of classes."""
        return {}

    def row_metrics(self, source: FlatSource, decoded: Sequence[Any]) -> Mapping[str, RowRatio]:
        """Returns `ndcg_at_K`, `mrr_at_K` and `map` by query."""
        by_name = metrics_by_list(source.records, decoded, self.top_k)
        return {name: RowRatio(values, np.ones(len(values))) for name, values in by_name.items()}

    def to_record(self) -> dict[str, Any]:
        """Returns pooling, length, and the problem by which other libraries know a single score."""
        record = {"pooling": self.pooling, "max_length": self.max_length}
        return {**record, "problem": REGRESSION, RERANKS_KEY: True}

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[list[float]]:
        """Returns the score of each candidate of each list."""
        places = batch.targets["places"]
        real = places[places != IGNORE_INDEX].tolist()
        scores = outputs["logits"][: len(real), 0].float().tolist()
        decoded: list[list[float]] = []
        for place, score in zip(real, scores, strict=True):
            if place == 0:
                decoded.append([])
            decoded[-1].append(score)
        return decoded

    def assemble(self, source: FlatSource, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns the documents of each row with their scores and ranks, in the order of the row."""
        predictions = []
        for candidates in candidates_of_rows(source.records):
            documents = [source.records[item].documents[index] for item, index in candidates]
            scores = [decoded[item][index] for item, index in candidates]
            predictions.append({"documents": documents, "scores": scores, "ranks": ranks_of(scores)})
        return predictions

    def explained(self, source: FlatSource, decoded: Sequence[Any], name: str | None) -> list[list[Explained]]:
        """Returns the score of the best document of each row, named by the document."""
        rows = candidates_of_rows(source.records)
        best = [max(candidates, key=lambda each: decoded[each[0]][each[1]]) for candidates in rows]
        return [[Explained(item, index, source.records[item].documents[index])] for item, index in best]

    def explained_scores(self, outputs: Mapping[str, Tensor], batch: PackedBatch, targets: Sequence[int]) -> Tensor:
        """Returns the score of the chosen document of each row."""
        return chosen_scores(by_list(outputs["logits"], batch).scores, targets)

    def explained_spans(
        self, source: FlatSource, explained: Explained, values: Mapping[str, str], tokenizer: Tokenizer
    ) -> TokenSpans:
        """Locates the tokens of the chosen document's sequence.

        Offsets of the field `documents` count the characters of that document. The tokens of others do not count.
        """
        return locate_candidate(source, explained.item, explained.target, tokenizer)

    def examine(self, source: FlatSource, results: ItemResults) -> Examination:
        """Builds the error analysis with one row per query and its ranking."""
        return examine_lists(source.records, results, self.top_k)


def _sizes(lists: Sequence[CandidateList]) -> str:
    sizes = [len(each.documents) for each in lists]
    relevant = [sum(value > 0 for value in each.relevance or ()) for each in lists]
    return (
        f"{min(sizes):,} to {max(sizes):,} a query, mean {sum(sizes) / len(sizes):.4g}, of which relevant "
        f"{sum(relevant) / len(relevant):.4g}"
    )
