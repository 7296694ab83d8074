"""Builds sequences of reranking: an item has one sequence per candidate, and they do not attend to each other.

The layout is `[CLS] query [SEP] document [SEP]`, as `framework.data.layout` joins pairs. The longer text of a long pair
is truncated. All candidates of a query are one item, so its loss is computed in one micro-batch of one rank.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from framework import ragged
from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import lay_out
from framework.data.tokenization.tokenizer import Tokenizer
from framework.nn.cross_entropy import at_least_fp32
from framework.tasks.explanation import TokenSpans, locate_texts
from framework.tasks.reranking.candidates import CandidateList
from framework.tasks.reranking.losses import ScoredLists

LISTS = "lists"
"""Key of the number of lists of a micro-batch in `PackedBatch.counts`, where it is no loss term."""


def no_count(each: CandidateList) -> float:  # noqa: ARG001  relevance is unknown
    """Returns 0, the count of a list to predict."""
    return 0.0


def candidate_source(
    lists: Sequence[CandidateList],
    tokenizer: Tokenizer,
    max_length: int,
    term: str,
    count: Callable[[CandidateList], float] = no_count,
    keeps_texts: bool = False,
) -> FlatSource:
    """Builds an item for each list; its record is the list.

    Targets, each (sequences,): places, the index of the candidate in its item, IGNORE_INDEX for dummies; relevance and
    teacher_scores, 0 if unknown. Counts: that of the term, and LISTS.

    Args:
        lists: Lists.
        tokenizer: Tokenizer of the model.
        max_length: Most tokens of a sequence, special tokens included; the longer text of a long pair is truncated.
        term: Name of the loss term.
        count: Function that returns the count of a list in the loss term.
        keeps_texts: True to keep the texts for an augmentation that rewrites them.
    """
    queries = [each.query for each in lists for _ in each.documents]
    documents = [document for each in lists for document in each.documents]
    layout = lay_out(queries, documents, tokenizer, max_length, keeps_texts)
    sizes = np.array([len(each.documents) for each in lists], dtype=np.int64)
    places = ragged.offsets_within(sizes)
    is_first = (places == 0).astype(np.float64)
    targets = {
        "places": FlatTarget(places, "sequences"),
        "relevance": FlatTarget(_joined([each.relevance for each in lists], sizes), "sequences", filler=0),
        "teacher_scores": FlatTarget(_joined([each.teacher_scores for each in lists], sizes), "sequences", filler=0),
    }
    counts = {term: np.repeat([count(each) for each in lists], sizes) * is_first, LISTS: is_first}
    return layout.source(targets, counts, max_length, sizes, lists)


def _joined(values: Sequence[Sequence[float] | None], sizes: np.ndarray) -> np.ndarray:
    """Returns (sequences,) fp32 values of all lists, 0 for those of a list without values."""
    parts = [np.zeros(size) if own is None else own for own, size in zip(values, sizes.tolist(), strict=True)]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float32)


def list_index(batch: PackedBatch) -> Tensor:
    """Returns (sequences,) int64 index of each sequence's list in the micro-batch; that of a dummy has no meaning."""
    return ((batch.targets["places"] == 0).cumsum(0) - 1).clamp(min=0)


def by_list(logits: Tensor, batch: PackedBatch) -> ScoredLists:
    """Arranges the scores and targets of a micro-batch in one row per list.

    Args:
        logits: (sequences, 1).
        batch: Micro-batch with its targets.

    Returns:
        Lists of `group_size` columns; one list without candidates if the micro-batch has none.
    """
    places = batch.targets["places"]
    # Dummies fill an additional column, which is cut off.
    columns = torch.where(places == IGNORE_INDEX, batch.group_size, places)
    rows = list_index(batch)
    shape = (max(1, round(batch.counts[LISTS])), batch.group_size + 1)

    def arranged(values: Tensor) -> Tensor:
        return values.new_zeros(shape).index_put((rows, columns), values)[:, :-1]

    return ScoredLists(
        scores=arranged(at_least_fp32(logits[:, 0])),
        relevance=arranged(batch.targets["relevance"]),
        teacher_scores=arranged(batch.targets["teacher_scores"]),
        is_real=arranged(places != IGNORE_INDEX),
    )


def locate_candidate(source: FlatSource, item: int, index: int, tokenizer: Tokenizer) -> TokenSpans:
    """Locates the tokens of one candidate of a list in the query and in the candidate, the field `documents`.

    Args:
        source: Source of the lists.
        item: Index of the list.
        index: Index of the candidate.
        tokenizer: Tokenizer of the model.
    """
    each, tokens = source.records[item], source.tokens(np.array([item]))
    begin = int(tokens.lengths[:index].sum())
    ids = tokens.input_ids[begin : begin + int(tokens.lengths[index])]
    return locate_texts(ids, {"query": each.query, "documents": each.documents[index]}, tokenizer, begin)
