"""Chooses hard negatives among the nearest documents of a query.

The windows are those of `mine_hard_negatives` of sentence-transformers 5. A relative margin of 0.05 is the
positive-aware mining of Moreira et al. 2024 (arXiv:2407.15831, "TopK-PercPos").
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from framework.errors import ConfigError, check_at_least, check_choice
from framework.random import key, mix


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Choice of hard negatives.

    Attributes:
        num_negatives: Largest number of negatives of a pair.
        range_min: Number of nearest documents that are left out, as probable answers. Known answers do not count.
        range_max: Rank of the last document that may be a negative.
        max_score: Score above which a document is left out as a probable answer; None: no limit.
        min_score: Score below which a document is left out as too easy; None: no limit.
        absolute_margin: Smallest difference between the scores of the positive and a negative; None: no limit.
        relative_margin: The same as a share of the score of the positive; None: no limit.
        sampling: "top" takes the documents with the largest scores, "random" draws among all that are left.
        seed: Seed of the draws.

    Raises:
        ConfigError: A number is out of range.
    """

    num_negatives: int = 5
    range_min: int = 0
    range_max: int = 100
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = 0.05
    sampling: Literal["top", "random"] = "top"
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least("`num_negatives`", self.num_negatives, 1)
        check_at_least("`range_min`", self.range_min, 0)
        check_choice("`sampling`", self.sampling, ("top", "random"))
        if self.range_max <= self.range_min:
            raise ConfigError(
                f"`range_max` is {self.range_max} and `range_min` is {self.range_min}. Negatives come from the ranks "
                "between the two. Raise range_max."
            )
        for name in ("absolute_margin", "relative_margin"):
            margin = getattr(self, name)
            if margin is not None:
                check_at_least(f"`{name}`", margin, 0, "Use null for no margin.")


@dataclass(frozen=True, eq=False)
class Candidates:
    """Documents that may be negatives of a pair, in falling order of their scores.

    Attributes:
        query: Index of the query.
        positive: Index of its positive.
        positive_score: Score of the positive.
        documents: (candidates,) indices.
        scores: (candidates,) their scores.
    """

    query: int
    positive: int
    positive_score: float
    documents: np.ndarray
    scores: np.ndarray


Rescore = Callable[[Sequence[Candidates]], Sequence[np.ndarray]]
"""Function from pairs to the scores of another model: of the positive, then of each candidate."""


def in_window(
    found: np.ndarray, scores: np.ndarray, known: Collection[int], rules: Rules
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the documents within the ranks of the rules, and their scores.

    Args:
        found: (documents,) indices of the nearest documents, best first; -1: there are no more.
        scores: (documents,) their scores.
        known: Documents that are never negatives, such as the positives of the query. They have no rank.
        rules: Rules with the ranks.
    """
    kept = [place for place, document in enumerate(found.tolist()) if document >= 0 and document not in known]
    window = kept[rules.range_min : rules.range_max]
    return found[window], scores[window]


def rescored(pairs: Sequence[Candidates], rescore: Rescore) -> list[Candidates]:
    """Replaces the scores by those of another model, and sorts the candidates by them."""
    changed = []
    for pair, (positive_score, *rest) in zip(pairs, rescore(pairs), strict=True):
        scores = np.array(rest, dtype=np.float64)
        order = np.argsort(-scores, kind="stable")
        changed.append(
            replace(pair, positive_score=float(positive_score), documents=pair.documents[order], scores=scores[order])
        )
    return changed


def choose(pair: Candidates, rules: Rules, index: int) -> np.ndarray:
    """Returns the places of the negatives among the candidates of a pair, in falling order of their scores.

    Args:
        pair: Candidates of the pair.
        rules: Rules of the choice.
        index: Index of the pair, from which draws are computed.
    """
    limits = [np.inf if rules.max_score is None else rules.max_score]
    if rules.absolute_margin is not None:
        limits.append(pair.positive_score - rules.absolute_margin)
    if rules.relative_margin is not None:
        limits.append(pair.positive_score - rules.relative_margin * abs(pair.positive_score))
    is_kept = pair.scores <= min(limits)
    if rules.min_score is not None:
        is_kept &= pair.scores >= rules.min_score
    places = np.flatnonzero(is_kept)
    if rules.sampling == "random":
        draws = mix(key(rules.seed, "hard negatives", index), pair.documents[places])
        places = np.sort(places[np.argsort(draws, kind="stable")[: rules.num_negatives]])
    return places[: rules.num_negatives]
