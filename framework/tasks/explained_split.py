"""Explanations of a split for its report: words of rows with their scores, faithfulness, attention of one row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class RowExplanation:
    """A score of a row, and the shares of its words in it.

    Attributes:
        row: Index of the row in the split.
        name: Name of the score, such as the predicted label.
        score: Score of the row.
        baseline_score: Score of the row with all words masked.
        input_ids: (tokens,) ids, special tokens included.
        token_scores: (tokens,) float64, 0 for special tokens.
        words: (tokens,) int64 index of the word of each token; -1 for special tokens.
    """

    row: int
    name: str
    score: float
    baseline_score: float
    input_ids: np.ndarray
    token_scores: np.ndarray
    words: np.ndarray

    @property
    def word_tokens(self) -> list[np.ndarray]:
        """Returns the indices of the tokens of each word."""
        return [np.flatnonzero(self.words == word) for word in range(self.words.max(initial=-1) + 1)]


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """Changes of predictions when words are masked (ERASER, DeYoung et al. 2020, arXiv:1911.03429, section 4).

    Comprehensiveness is the value with all words minus the value without the words with the highest scores.
    Sufficiency is the value with all words minus the value with only those. Departure: words are masked and not
    deleted, so that positions stay the same, as in the baseline of the explanations.

    Attributes:
        value: Name of the value: "probability" of the prediction, or "score".
        fractions: Fraction of the words that are masked or kept.
        comprehensiveness: (rows, fractions) float64.
        sufficiency: (rows, fractions) float64.
        random_comprehensiveness: (rows, fractions) float64, with words in a random order.
        random_sufficiency: (rows, fractions) float64, with words in the same random order.
    """

    value: str
    fractions: Sequence[float]
    comprehensiveness: np.ndarray
    sufficiency: np.ndarray
    random_comprehensiveness: np.ndarray
    random_sufficiency: np.ndarray


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """Attention probabilities of all heads for one sequence.

    Attributes:
        row: Index of the row in the split.
        input_ids: (tokens,) ids, special tokens included.
        layers: (heads, tokens, tokens) fp32 for each layer, with queries as rows.
    """

    row: int
    input_ids: np.ndarray
    layers: Sequence[np.ndarray]


@dataclass(frozen=True, slots=True)
class SplitExplanations:
    """Explanations of a split.

    Attributes:
        labels: Names of the scores that can be explained for every row, from `Task.explained_labels`.
        steps: Number of points of integrated gradients.
        error: Median completeness error of the explanations.
        num_rows: Number of rows that represent the split. They are evenly spaced.
        sampled: Explanations of these rows; a row may have several or none.
        shown: Explanation of each of the worst rows, in their order; None if the row has no score to explain.
        faithfulness: Faithfulness on the rows that represent the split; None if they have no words.
        attention: Attention for one row; None if the report shows no texts.
    """

    labels: Sequence[str]
    steps: int
    error: float
    num_rows: int
    sampled: Sequence[RowExplanation]
    shown: Sequence[RowExplanation | None]
    faithfulness: Faithfulness | None
    attention: AttentionHeads | None
