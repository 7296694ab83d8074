"""Items of embeddings: a text, its matching text and its hard negatives, as adjacent sequences.

An evaluated split may end with items of a single text: additional search candidates.

Targets, one per sequence: `queries`, an id shared by items with the same first text or the same label (NO_QUERY: the
text is only a candidate); `texts`, an id of the text, or of the label for labelled texts; `scores` of scored pairs;
`teacher_scores` of the candidates of matching pairs; `teacher_vectors` of the first texts of rows. The record of an
item (`FlatSource.records`) is its score or a `SearchRole`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from framework import ragged
from framework.batch import PackedBatch
from framework.data.examples.splits import same_text
from framework.data.flat_source import DerivedSource, FlatSource, FlatTarget
from framework.data.layout import Layout, lay_out
from framework.data.planning.collate import Shape
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.random import key, mix, random_integers
from framework.tasks.embedding.data import TextGroup
from framework.tasks.embedding.losses import ANCHOR, NO_QUERY, POSITIVE


@dataclass(frozen=True, slots=True)
class SearchRole:
    """Search role of an item in an evaluated split.

    Attributes:
        query: Query id of its first text. None: the item is not a query.
        answer: Answer id of the item. The answers to a query are the answer ids of all items with that query id.
        candidate: Index of the item's sequence that is a search candidate. None: the item has no candidate.
    """

    query: int | None
    answer: int
    candidate: int | None


TEACHER_SCORES = "teacher_scores"
"""Target with the teacher's scores of candidates; 0 for other texts."""

TEACHER_VECTORS, HAS_TEACHER_VECTOR = "teacher_vectors", "has_teacher_vector"
"""Targets with a teacher's vector of each text, (sequences, channels), and 1 for texts that have one, else 0."""

LayOut = Callable[[Sequence[str], np.ndarray, Tokenizer, int], tuple[Layout, Mapping[str, np.ndarray]]]
"""Function from texts, (texts,) bool that is True for documents, the tokenizer and the maximum number of tokens to the
layout of the texts and (tokens,) targets by name."""


def lay_out_alike(
    texts: Sequence[str],
    is_document: np.ndarray,  # noqa: ARG001  both sides are alike
    tokenizer: Tokenizer,
    max_length: int,
) -> tuple[Layout, Mapping[str, np.ndarray]]:
    """Lays out queries and documents in the same way, without targets."""
    return lay_out(texts, None, tokenizer, max_length), {}


def text_source(
    items: Sequence[Sequence[str]],
    targets: Mapping[str, np.ndarray],
    terms: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    records: Sequence[Any] = (),
    layout_of: LayOut = lay_out_alike,
    is_document: np.ndarray | None = None,
) -> FlatSource:
    """Builds items of texts. Each query counts 1 in each loss term.

    Args:
        items: Texts of each item.
        targets: (sequences,) arrays by name. They include `queries` if there is a loss.
        terms: Names of loss terms.
        tokenizer: Tokenizer that supplies ids and special tokens.
        max_length: Maximum number of tokens of a sequence, special tokens included.
        records: Records as in FlatSource.
        layout_of: Layout of the texts.
        is_document: (sequences,) bool. None: all texts but the queries are documents.
    """
    sizes = np.array([len(texts) for texts in items], dtype=np.int64)
    is_query = ragged.offsets_within(sizes) == ANCHOR
    if "queries" in targets:
        is_query &= targets["queries"] != NO_QUERY
    texts = [text for item in items for text in item]
    layout, token_targets = layout_of(texts, ~is_query if is_document is None else is_document, tokenizer, max_length)
    counts = is_query if "queries" in targets else np.zeros_like(is_query)
    if TEACHER_SCORES in targets:
        counts = counts & (sizes.repeat(sizes) > POSITIVE + 1)  # a single candidate is compared with none
    flat_targets = {name: FlatTarget(values, "sequences") for name, values in targets.items()}
    flat_targets |= {name: FlatTarget(values, "tokens") for name, values in token_targets.items()}
    return layout.source(flat_targets, dict.fromkeys(terms, counts), max_length, sizes, records)


def scored_source(
    groups: Sequence[TextGroup],
    terms: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    layout_of: LayOut = lay_out_alike,
) -> FlatSource:
    """Builds items of scored pairs, whose two texts are queries. The record of a pair is its score."""
    scores = np.array([group.answer for group in groups], dtype=np.float64)
    targets = {"queries": np.arange(len(groups)).repeat(2), "scores": scores.repeat(2)}
    records, is_document = scores.tolist(), np.zeros(2 * len(groups), dtype=bool)
    items = [group.texts for group in groups]
    targets |= _vectors(groups, items)
    return text_source(items, targets, terms, tokenizer, max_length, records, layout_of, is_document)


def single_source(
    groups: Sequence[TextGroup],
    terms: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    layout_of: LayOut = lay_out_alike,
) -> FlatSource:
    """Builds items of a text and the same text, which are two sequences and so have two dropout masks.

    Copies of a text in other rows are no negatives of it.
    """
    ids: dict[str, int] = {}
    texts = np.array([ids.setdefault(same_text(group.texts[0]), len(ids)) for group in groups]).repeat(2)
    items, is_document = [group.texts * 2 for group in groups], np.zeros(len(texts), dtype=bool)
    targets = {"queries": texts, "texts": texts, **_vectors(groups, items)}
    return text_source(items, targets, terms, tokenizer, max_length, (), layout_of, is_document)


def _vectors(groups: Sequence[TextGroup], items: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Returns the targets of a teacher's vectors of the first texts of rows; nothing if rows have none.

    Args:
        groups: Rows.
        items: Texts of each item; the first items are those of the rows.
    """
    given = [(index, group.vector) for index, group in enumerate(groups) if group.vector is not None]
    if not given:
        return {}
    firsts = ragged.starts(np.array([len(texts) for texts in items]))[[index for index, _ in given]]
    num_texts = sum(map(len, items))
    vectors = np.zeros((num_texts, len(given[0][1])), dtype=np.float32)
    has_vector = np.zeros(num_texts, dtype=np.int64)
    vectors[firsts], has_vector[firsts] = np.stack([vector for _, vector in given]), 1
    return {TEACHER_VECTORS: vectors, HAS_TEACHER_VECTOR: has_vector}


def match_source(
    groups: Sequence[TextGroup],
    candidates: Iterable[str],
    terms: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    layout_of: LayOut = lay_out_alike,
) -> FlatSource:
    """Builds items of matching pairs with hard negatives. Each distinct answer is a search candidate once.

    Args:
        groups: Rows of the split.
        candidates: Additional search candidates. Texts that are already answers of rows are ignored.
        terms: Names of loss terms.
        tokenizer: Tokenizer that supplies ids and special tokens.
        max_length: Maximum number of tokens of a sequence, special tokens included.
        layout_of: Layout of the texts.
    """
    ids: dict[str, int] = {}
    items: list[tuple[str, ...]] = [group.texts for group in groups]
    members = [[ids.setdefault(same_text(text), len(ids)) for text in texts] for texts in items]
    queries = [[own[ANCHOR]] * len(own) for own in members]
    records, seen = [], set()
    for own in members:
        answer = own[POSITIVE]
        records.append(SearchRole(own[ANCHOR], answer, None if answer in seen else POSITIVE))
        seen.add(answer)
    for text in candidates:
        answer = ids.setdefault(same_text(text), len(ids))
        if answer not in seen:
            seen.add(answer)
            items.append((text,))
            members.append([answer])
            queries.append([NO_QUERY])
            records.append(SearchRole(None, answer, ANCHOR))
    targets = {"queries": np.array([*chain(*queries)]), "texts": np.array([*chain(*members)])}
    if any(group.teacher_scores is not None for group in groups):
        scores = [[0.0, *(group.teacher_scores or ())] for group in groups] + [[0.0]] * (len(items) - len(groups))
        targets[TEACHER_SCORES] = np.array([*chain(*scores)])
    return text_source(items, targets | _vectors(groups, items), terms, tokenizer, max_length, records, layout_of)


def labelled_source(
    groups: Sequence[TextGroup],
    candidates: Sequence[TextGroup],
    terms: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    seed: int,
    layout_of: LayOut = lay_out_alike,
) -> "DrawnPairs":
    """Builds items of labelled texts. Each epoch draws a new second text with the same label for each.

    Args:
        groups: Rows of the split.
        candidates: Rows that are the search candidates. Empty: the rows of `groups` are, and each text searches among
            the others.
        terms: Names of loss terms.
        tokenizer: Tokenizer that supplies ids and special tokens.
        max_length: Maximum number of tokens of a sequence, special tokens included.
        seed: Seed of the draws.
        layout_of: Layout of the texts, which are all queries.
    """
    ids: dict[str, int] = {}
    labels = np.array([ids.setdefault(str(group.answer), len(ids)) for group in (*groups, *candidates)])
    has_query = np.arange(len(labels)) < len(groups)
    records = [
        SearchRole(int(label) if is_query else None, int(label), None if is_query and candidates else ANCHOR)
        for label, is_query in zip(labels, has_query, strict=True)
    ]
    targets = {"queries": np.where(has_query, labels, NO_QUERY), "texts": labels}
    texts = [group.texts for group in (*groups, *candidates)]
    targets |= _vectors((*groups, *candidates), texts)
    is_document = np.zeros(len(texts), dtype=bool)
    source = text_source(texts, targets, terms, tokenizer, max_length, records, layout_of, is_document)
    return DrawnPairs(source, labels[: len(groups)], seed)


class DrawnPairs(DerivedSource):
    """Items of single texts. Items with a label get a second text (a `SequenceSource`).

    The second text is a function of (seed, epoch, index): any other text with the same label. A text with a unique
    label is paired with itself, and dropout makes the two embeddings differ (Gao et al. 2021, arXiv:2104.08821,
    section 3).

    Args:
        texts: Items of one sequence each.
        labels: (paired,) labels of the first `paired` texts. Later texts have no label.
        seed: Seed of the draws.

    Attributes:
        max_length: Maximum number of tokens of an item.
        max_sequence_length: Maximum number of tokens of a sequence.
        group_size: Maximum number of sequences of an item.
        records: Records of the items.
    """

    def __init__(self, texts: FlatSource, labels: np.ndarray, seed: int) -> None:
        super().__init__(texts)
        self.max_length = 2 * texts.max_length
        self.group_size = 2
        self._key = key(seed, "text of the same label")
        # Texts sorted by label: for each text its index in that order, and the start and size of its label's range.
        self._order = labels.argsort(kind="stable")
        sizes = np.bincount(labels)
        self._start, self._size = ragged.starts(sizes)[labels], sizes[labels]
        self._rank = np.empty_like(self._order)
        self._rank[self._order] = np.arange(len(labels))

    @property
    def mean_length(self) -> float:
        """Returns the mean number of tokens of an item in the first epoch, special tokens included."""
        indices = np.arange(len(self))
        return float(self.lengths(np.zeros_like(indices), indices).mean())

    def positives(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns (paired,) indices of the second texts, for items that have one."""
        draws = mix(mix(self._key, epochs), indices)
        start, size = self._start[indices], self._size[indices]
        # Rotating within the texts of the label by 1 to size - 1 always selects another text.
        steps = 1 + random_integers(draws, np.maximum(size - 1, 1))
        return self._order[start + (self._rank[indices] - start + steps) % size]

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns (items,) int64: tokens of each item, special tokens included."""
        lengths = self.source.lengths(epochs, indices).copy()
        is_paired = indices < len(self._rank)
        seconds = self.positives(epochs[is_paired], indices[is_paired])
        lengths[is_paired] += self.source.lengths(epochs[is_paired], seconds)
        return lengths

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch; its sequences are items."""
        epochs, indices = sequences.epochs, sequences.indices
        is_paired = indices < len(self._rank)
        sizes = 1 + is_paired
        members = ragged.offsets_within(sizes)
        texts = np.repeat(indices, sizes)
        texts[members == POSITIVE] = self.positives(epochs[is_paired], indices[is_paired])
        ids = np.repeat(sequences.sequence_ids, sizes) * self.group_size + members
        batch = self.source.build(StepSequences(np.repeat(epochs, sizes), texts, ids), step, shape)
        counts = dict.fromkeys(batch.counts, float(is_paired.sum()))
        return replace(batch, group_size=self.group_size, counts=counts)
