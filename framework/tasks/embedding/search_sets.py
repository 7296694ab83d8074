"""Evaluation on sets of judged queries, such as BEIR: each query is searched among all documents of its set.

An item is a query with its most relevant document, or a document that is no such answer. The loss compares the queries
of a step with these answers.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from framework.batch import PackedBatch
from framework.data.examples.beir import BeirSet
from framework.data.examples.splits import same_text
from framework.data.flat_source import DerivedSource, FlatSource
from framework.data.planning.collate import Shape
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.metrics.ranking import (
    RankedGains,
    average_precision,
    hit_rate,
    ndcg,
    pad_lists,
    precision,
    recall,
    reciprocal_rank,
)
from framework.retrieval.search import DOCUMENTS_AT_ONCE, BlockScores, search
from framework.tasks.embedding.features import LayOut, lay_out_alike, text_source
from framework.tasks.embedding.losses import ANCHOR, NO_QUERY, POSITIVE
from framework.tasks.embedding.scores import Index

_CUTS = (1, 5, 10)
_DEPTH = 100
"""Number of documents that are ranked for each query."""


@dataclass(frozen=True, eq=False)
class SearchSet:
    """Judged queries and documents of one set.

    Attributes:
        name: Name of the set, a prefix of its metrics.
        queries: (queries,) item whose first text is the query.
        documents: (documents, 2) item and index of its text that is the document.
        grades: For each query the grades above 0, by document.
        own: (queries,) document with the id of the query, which is never a result for it; -1: there is none.
    """

    name: str
    queries: np.ndarray
    documents: np.ndarray
    grades: Sequence[Mapping[int, int]]
    own: np.ndarray


class SearchSource(DerivedSource):
    """Items of one or several sets of judged queries (a `SequenceSource`).

    Args:
        texts: Items of one or two sequences.
        sets: The sets.
    """

    def __init__(self, texts: FlatSource, sets: Sequence[SearchSet]) -> None:
        super().__init__(texts)
        self.sets = sets

    @property
    def group_size(self) -> int:  # type: ignore[override]
        """Maximum number of sequences of an item, from which ids of sequences are computed."""
        return self.source.group_size

    @group_size.setter
    def group_size(self, size: int) -> None:
        self.source.group_size = size

    @property
    def fingerprint(self) -> str:
        """Returns the fingerprint of the texts and of the judgments."""
        digest = hashlib.blake2b(digest_size=16)
        for each in self.sets:
            digest.update(f"{each.name} {[sorted(grades.items()) for grades in each.grades]}".encode())
        return f"{super().fingerprint} {digest.hexdigest()}"

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns (items,) int64: tokens of each item, special tokens included."""
        return self.source.lengths(epochs, indices)

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch; its sequences are items."""
        return self.source.build(sequences, step, shape)


def search_source(
    sets: Sequence[BeirSet],
    terms: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    layout_of: LayOut = lay_out_alike,
) -> SearchSource:
    """Builds the items of sets. A document that answers several queries is encoded with each of them.

    Args:
        sets: Sets with different names.
        terms: Names of loss terms.
        tokenizer: Tokenizer that supplies ids and special tokens.
        max_length: Maximum number of tokens of a sequence, special tokens included.
        layout_of: Layout of the texts.
    """
    ids: dict[str, int] = {}
    items: list[tuple[str, ...]] = []
    queries: list[int] = []
    searched = []
    for each in sets:
        first, documents, grades = len(items), list(each.documents.values()), each.grades()
        member_of: dict[int, tuple[int, int]] = {}
        for text, own in zip(each.queries.values(), grades, strict=True):
            best = max(own, key=lambda document: own[document])
            member_of.setdefault(best, (len(items), POSITIVE))
            items.append((text, documents[best]))
            queries += [ids.setdefault(same_text(text), len(ids))] * 2
        for document, text in enumerate(documents):
            if document not in member_of:
                member_of[document] = (len(items), ANCHOR)
                items.append((text,))
                queries.append(NO_QUERY)
        index_of = {key: index for index, key in enumerate(each.documents)}
        searched.append(
            SearchSet(
                each.name,
                first + np.arange(len(grades)),
                np.array([member_of[document] for document in range(len(documents))]),
                grades,
                np.array([index_of.get(key, -1) for key in each.queries]),
            )
        )
    texts = [ids.setdefault(same_text(text), len(ids)) for item in items for text in item]
    targets = {"queries": np.array(queries), "texts": np.array(texts)}
    return SearchSource(text_source(items, targets, terms, tokenizer, max_length, (), layout_of), searched)


def set_scores(decoded: Sequence[Any], sets: Sequence[SearchSet], index: Index) -> dict[str, float]:
    """Averages metrics over the queries of each set, then over the sets.

    Args:
        decoded: Decoded texts of each item.
        sets: The sets.
        index: Function from decoded candidates to their scorer.

    Returns:
        Metrics of `query_scores`; of several sets their means, and `NAME_ndcg_at_10` of each set.
    """
    by_set = {each.name: _means(query_scores(decoded, each, index)) for each in sets}
    values = [*by_set.values()]
    means = {name: float(np.mean([each[name] for each in values])) for name in values[0]}
    own = {f"{name}_ndcg_at_10": each["ndcg_at_10"] for name, each in by_set.items()}
    return means | (own if len(sets) > 1 else {})


def set_table(decoded: Sequence[Any], sets: Sequence[SearchSet], index: Index) -> list[dict[str, object]]:
    """Returns a row of metrics for each of several sets."""
    shown = ("ndcg_at_10", "mrr_at_10", "map_at_100", "recall_at_100", "precision_at_10")
    rows = []
    for each in sets:
        values = _means(query_scores(decoded, each, index))
        counts = {"queries": len(each.queries), "documents": len(each.documents)}
        rows.append({"set": each.name, **counts, **{name: values[name] for name in shown}})
    return rows


def query_scores(decoded: Sequence[Any], searched: SearchSet, index: Index) -> dict[str, np.ndarray]:
    """Computes the metrics of each query of a set over its best 100 documents, in [0, 1].

    The definitions are those of trec_eval, except that documents with equal scores keep the order of the corpus.

    Returns:
        (queries,) values of `mrr`, `mrr_at_10`, `map_at_100`, `ndcg_at_10`, `recall_at_K` for K 1, 5, 10 and 100, and
        `precision_at_K` and `hit_rate_at_K` for K 1, 5 and 10.
    """
    ranked = rank_documents(decoded, searched, index)
    by_cut = {"recall": recall, "precision": precision, "hit_rate": hit_rate}
    return {
        "mrr": reciprocal_rank(ranked),
        "mrr_at_10": reciprocal_rank(ranked, 10),
        "map_at_100": average_precision(ranked, _DEPTH),
        "ndcg_at_10": ndcg(ranked, 10),
        **{f"{name}_at_{k}": metric(ranked, k) for name, metric in by_cut.items() for k in _CUTS},
        f"recall_at_{_DEPTH}": recall(ranked, _DEPTH),
    }


def rank_documents(decoded: Sequence[Any], searched: SearchSet, index: Index) -> RankedGains:
    """Searches the best 100 documents of each query and returns their grades.

    Args:
        decoded: Decoded texts of each item.
        searched: The set.
        index: Function from decoded candidates to their scorer.
    """
    queries = [decoded[item][ANCHOR] for item in searched.queries]

    def blocks() -> Iterator[tuple[int, BlockScores]]:
        for first in range(0, len(searched.documents), DOCUMENTS_AT_ONCE):
            part = searched.documents[first : first + DOCUMENTS_AT_ONCE]
            scorer = index([decoded[item][member] for item, member in part])
            yield first, lambda rows: torch.from_numpy(scorer(queries[rows]))  # noqa: B023  used before the next block

    found = search(len(queries), blocks(), _DEPTH + 1).indices
    gains = np.zeros((len(queries), _DEPTH))
    for row, own, grades, documents_of_row in zip(gains, searched.own, searched.grades, found, strict=True):
        results = documents_of_row[documents_of_row != own] if own >= 0 else documents_of_row
        row[:] = [grades.get(document, 0) for document in results[:_DEPTH].tolist()]
    ideal = [sorted((grade for grade in grades.values()), reverse=True) for grades in searched.grades]
    return RankedGains(gains, pad_lists(ideal, 0.0))


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(each.mean()) for name, each in values.items()}
