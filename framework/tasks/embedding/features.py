"""Items of embeddings: a text, the one that belongs to it, and its hard negatives, as sequences that lie side by side.

Splits that are evaluated end with items of one text: what is searched beside them.

Targets, one a sequence: `queries`, an id that items share whose first texts are the same, or whose labels are
(NO_QUERY: the text is only searched); `texts`, an id of the text, for labelled texts of the label; `scores` of scored
pairs. What an item keeps (`FlatSource.records`) is its score, or a `Searched`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from framework import ragged
from framework.batch import PackedBatch
from framework.data.examples.splits import same_text
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import lay_out
from framework.data.planning.collate import Shape
from framework.data.planning.order import Shuffle
from framework.data.tokenization.tokenizer import Tokenizer
from framework.random import below, key, mix
from framework.tasks.embedding.data import TextGroup
from framework.tasks.embedding.losses import ANCHOR, NO_QUERY, POSITIVE


@dataclass(frozen=True, slots=True)
class Searched:
    """What an item is when its split is searched.

    Attributes:
        query: Id of what its first text asks for; None: it does not ask.
        answer: Id of what the item answers: a query's answers are those of all items that have it.
        candidate: Which of the item's sequences is found by others; None: none.
    """

    query: int | None
    answer: int
    candidate: int | None


def text_source(
    items: Sequence[Sequence[str]],
    targets: Mapping[str, np.ndarray],
    terms: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    records: Sequence[Any] = (),
) -> FlatSource:
    """Items of texts; those that ask count 1 in each loss term.

    Args:
        items: Texts of each.
        targets: (sequences,) each; `queries` among them where there is a loss.
        terms: Names of loss terms.
        tokenizer: Gives ids and special tokens.
        max_length: Most tokens of a sequence, special tokens included.
        records: As in FlatSource.
    """
    sizes = np.array([len(texts) for texts in items], dtype=np.int64)
    layout = lay_out([text for texts in items for text in texts], None, tokenizer, max_length)
    is_first = ragged.offsets_within(sizes) == ANCHOR
    counts = is_first & (targets["queries"] != NO_QUERY) if "queries" in targets else np.zeros(len(is_first))
    return FlatSource(
        layout.input_ids,
        layout.lengths,
        {name: FlatTarget(values, "sequences") for name, values in targets.items()},
        dict.fromkeys(terms, counts),
        max_length,
        item_sizes=sizes,
        records=records,
        cutting=layout.cutting,
    )


def scored_source(
    groups: Sequence[TextGroup], terms: Sequence[str], tokenizer: Tokenizer, max_length: int
) -> FlatSource:
    """Pairs with their scores."""
    scores = np.array([group.answer for group in groups], dtype=np.float64)
    targets = {"queries": np.arange(len(groups)).repeat(2), "scores": scores.repeat(2)}
    return text_source([group.texts for group in groups], targets, terms, tokenizer, max_length, scores.tolist())


def match_source(
    groups: Sequence[TextGroup],
    candidates: Iterable[str],
    terms: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
) -> FlatSource:
    """Pairs that belong together, with hard negatives; each text that answers is found once.

    Args:
        groups: The rows.
        candidates: Texts that are searched beside the answers of the rows; those that answer a row are left out.
        terms: Names of loss terms.
        tokenizer: Gives ids and special tokens.
        max_length: Most tokens of a sequence, special tokens included.
    """
    ids: dict[str, int] = {}
    items: list[tuple[str, ...]] = [group.texts for group in groups]
    members = [[ids.setdefault(same_text(text), len(ids)) for text in texts] for texts in items]
    queries = [[own[ANCHOR]] * len(own) for own in members]
    records, found = [], set()
    for own in members:
        answer = own[POSITIVE]
        records.append(Searched(own[ANCHOR], answer, None if answer in found else POSITIVE))
        found.add(answer)
    for text in candidates:
        answer = ids.setdefault(same_text(text), len(ids))
        if answer not in found:
            found.add(answer)
            items.append((text,))
            members.append([answer])
            queries.append([NO_QUERY])
            records.append(Searched(None, answer, ANCHOR))
    targets = {"queries": np.array([*chain(*queries)]), "texts": np.array([*chain(*members)])}
    return text_source(items, targets, terms, tokenizer, max_length, records)


def labelled_source(
    groups: Sequence[TextGroup],
    candidates: Sequence[TextGroup],
    terms: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    seed: int,
) -> "DrawnPairs":
    """Texts, each with another one of its label that is drawn anew in each epoch.

    Args:
        groups: The rows.
        candidates: Rows that are searched; none: those of `groups` themselves, each text among the others.
        terms: Names of loss terms.
        tokenizer: Gives ids and special tokens.
        max_length: Most tokens of a sequence, special tokens included.
        seed: Of the draws.
    """
    ids: dict[str, int] = {}
    labels = np.array([ids.setdefault(str(group.answer), len(ids)) for group in (*groups, *candidates)])
    asks = np.arange(len(labels)) < len(groups)
    records = [
        Searched(int(label) if asking else None, int(label), None if asking and candidates else ANCHOR)
        for label, asking in zip(labels, asks, strict=True)
    ]
    targets = {"queries": np.where(asks, labels, NO_QUERY), "texts": labels}
    texts = [group.texts for group in (*groups, *candidates)]
    return DrawnPairs(text_source(texts, targets, terms, tokenizer, max_length, records), labels[: len(groups)], seed)


class DrawnPairs:
    """Items of single texts, of which those with a label get a second text (a `SequenceSource`).

    The second text is a function of (seed, epoch, index): any other one of the same label. A text that is alone with
    its label is paired with itself; dropout tells the two apart (Gao et al. 2021, arXiv:2104.08821, section 3).

    Args:
        texts: The items of one sequence.
        labels: (paired,) label of each of the first so many texts.
        seed: Of the draws.

    Attributes:
        max_length: Most tokens of an item.
        max_sequence_length: Most tokens of a sequence.
        group_size: Most sequences of an item.
        records: Of the items.
    """

    group_size = 2

    def __init__(self, texts: FlatSource, labels: np.ndarray, seed: int) -> None:
        self.shuffle = Shuffle()
        self.max_sequence_length = texts.max_sequence_length
        self.max_length = 2 * texts.max_length
        self.records = texts.records
        self.facts = texts.facts
        self._texts = texts
        self._key = key(seed, "text of the same label")
        # The texts ordered by label: where each stands, where its label begins, and how many texts have it.
        self._order = labels.argsort(kind="stable")
        sizes = np.bincount(labels)
        self._start, self._size = ragged.starts(sizes)[labels], sizes[labels]
        self._place = np.empty_like(self._order)
        self._place[self._order] = np.arange(len(labels))

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def fingerprint(self) -> str:
        """Of the texts and labels."""
        return self._texts.fingerprint

    @property
    def mean_length(self) -> float:
        """Mean tokens of an item of the first epoch, special tokens included."""
        indices = np.arange(len(self))
        return float(self.lengths(np.zeros_like(indices), indices).mean())

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Nothing is to be read, everything is in memory."""

    def positives(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """(paired,) the second texts of items that have one."""
        draws = mix(mix(self._key, epochs), indices)
        start, size = self._start[indices], self._size[indices]
        # Any step from 1 to size - 1 around the circle of the label leads to another text.
        steps = 1 + below(draws, np.maximum(size - 1, 1))
        return self._order[start + (self._place[indices] - start + steps) % size]

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """(items,) int64 tokens of each, special tokens included."""
        lengths = self._texts.lengths(epochs, indices).copy()
        is_paired = indices < len(self._place)
        seconds = self.positives(epochs[is_paired], indices[is_paired])
        lengths[is_paired] += self._texts.lengths(epochs[is_paired], seconds)
        return lengths

    def build(
        self,
        epochs: np.ndarray,
        indices: np.ndarray,
        sequence_ids: np.ndarray,
        step: int,
        shape: Shape = None,
    ) -> PackedBatch:
        """One micro-batch of items; `sequence_ids` are those of items."""
        is_paired = indices < len(self._place)
        sizes = 1 + is_paired
        members = ragged.offsets_within(sizes)
        texts = np.repeat(indices, sizes)
        texts[members == POSITIVE] = self.positives(epochs[is_paired], indices[is_paired])
        ids = np.repeat(sequence_ids, sizes) * self.group_size + members
        batch = self._texts.build(np.repeat(epochs, sizes), texts, ids, step, shape)
        counts = dict.fromkeys(batch.counts, float(is_paired.sum()))
        return replace(batch, group_size=self.group_size, counts=counts)
