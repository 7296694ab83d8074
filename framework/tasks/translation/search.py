"""Beam search over many sources at once. A function scores the next tokens, so this module needs no model.

The semantics are those of `generate(num_beams=N)` in transformers, with `early_stopping=False` (its default):

- The score of a finished hypothesis is the sum of its tokens' log-probabilities / (number of tokens, the end token
  included) ** length_penalty. This is not the penalty of Wu et al. 2016 (arXiv:1609.08144, section 7), which divides by
  ((5 + number) / 6) ** alpha. Both prefer longer targets as the exponent grows. The exponent 0 uses plain sums.
- At each length the search ranks the continuations of a source by their sums. A continuation that ends becomes a
  finished hypothesis if it is among the first `num_beams`. The first `num_beams` that do not end stay active.
- A source is done when it has `num_beams` finished hypotheses and its best active hypothesis, if it ended now, would
  not beat the worst of them. At `max_length` tokens all active hypotheses end as they are.

Ties: of equal sums, the continuation of the better hypothesis wins, then the smaller token id. Of equal scores, the
hypothesis that finished first wins. With one beam this is greedy search.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from framework.errors import check_at_least


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the beam search.

    Attributes:
        num_beams: Number of hypotheses kept per source at each length. 1 is greedy search.
        length_penalty: Exponent of the length that divides the sum of log-probabilities. 0 prefers short targets.
        max_length: Maximum number of tokens of a predicted target, without the start token, with the end token.

    Raises:
        ConfigError: `num_beams` or `max_length` is below 1.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    max_length: int = 128

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_length"):
            check_at_least(f"search.{name}", getattr(self, name), 1)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One target, active or finished.

    Attributes:
        tokens: Token ids without the start token. They include the end token if the target ended with it.
        score: Sum of log-probabilities of an active hypothesis; length-normalized score of a finished one.
    """

    tokens: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class ActiveTokens:
    """Last tokens of all active hypotheses, grouped by source.

    Attributes:
        tokens: Token ids, one per hypothesis.
        parents: Indices, in the previous call, of the hypotheses that these continue. In the first call: indices of
            the sources.
        sizes: Number of active hypotheses of each source; 0 for a source that is done.
    """

    tokens: list[int]
    parents: list[int]
    sizes: list[int]


NextScores = Callable[[ActiveTokens], Tensor]
"""Function from active hypotheses to next-token log-probabilities, (hypotheses, vocab)."""


@dataclass(slots=True)
class _Source:
    """Search state of one source: active hypotheses and finished hypotheses, each best first."""

    active: list[Hypothesis] = field(default_factory=lambda: [Hypothesis((), 0.0)])
    finished: list[Hypothesis] = field(default_factory=list)


def beam_search(
    next_scores: NextScores, num_sources: int, start_id: int, end_id: int, settings: SearchSettings
) -> list[list[Hypothesis]]:
    """Searches for targets with high scores.

    Args:
        next_scores: Scoring function. The search calls it once per length.
        num_sources: Number of independent searches.
        start_id: Id of the first token of every target.
        end_id: Id of the token that ends a target.
        settings: Number of beams, length penalty and maximum length.

    Returns:
        The finished hypotheses of each source, best first, at least 1 and at most `num_beams`.
    """
    sources = [_Source() for _ in range(num_sources)]
    last = ActiveTokens([start_id] * num_sources, list(range(num_sources)), [1] * num_sources)
    for length in range(1, settings.max_length + 1):
        if not last.tokens:
            break
        candidates = iter(_best_continuations(next_scores(last), settings.num_beams + 1))
        tokens, parents, sizes = [], [], []
        first = 0
        for source in sources:
            size = len(source.active)
            rows = [next(candidates) for _ in range(size)]
            indices = _advance(source, rows, end_id, length, settings)
            tokens += [hypothesis.tokens[-1] for hypothesis in source.active]
            parents += [first + index for index in indices]
            sizes.append(len(indices))
            first += size
        last = ActiveTokens(tokens, parents, sizes)
    return [source.finished for source in sources]


def _advance(
    source: _Source,
    rows: Sequence[Sequence[tuple[int, float]]],
    end_id: int,
    length: int,
    settings: SearchSettings,
) -> list[int]:
    """Extends a source's hypotheses by one token. Returns the indices of the parents of those that stay active."""
    is_last = length == settings.max_length
    continuations = sorted(_continuations(source.active, rows), key=lambda each: (-each[0], each[1], each[2]))
    active: list[Hypothesis] = []
    parents: list[int] = []
    for order, (total, parent, token) in enumerate(continuations):
        if order >= settings.num_beams and (is_last or len(active) == settings.num_beams):
            break
        tokens = (*source.active[parent].tokens, token)
        if token == end_id or is_last:
            if order < settings.num_beams:
                source.finished.append(Hypothesis(tokens, total / length**settings.length_penalty))
        elif len(active) < settings.num_beams:
            active.append(Hypothesis(tokens, total))
            parents.append(parent)
    source.finished = sorted(source.finished, key=lambda each: -each.score)[: settings.num_beams]
    source.active = active
    if active and len(source.finished) == settings.num_beams:
        best = active[0].score / length**settings.length_penalty
        if best <= source.finished[-1].score:
            source.active, parents = [], []
    return parents


def _continuations(
    active: Sequence[Hypothesis], rows: Sequence[Sequence[tuple[int, float]]]
) -> Iterator[tuple[float, int, int]]:
    """Yields the sum, the index of the parent and the token of each continuation that may be among the best."""
    for parent, (hypothesis, row) in enumerate(zip(active, rows, strict=True)):
        for token, value in row:
            yield hypothesis.score + value, parent, token


def _best_continuations(scores: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """Returns the best tokens of each row with their scores. The search needs at most `num_beams` + 1 of a row."""
    tokens = best_columns(scores, min(count, scores.shape[1]))
    values = scores.gather(1, tokens)
    return [
        list(zip(row, row_values, strict=True))
        for row, row_values in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def best_columns(scores: Tensor, count: int) -> Tensor:
    """Returns the columns of the largest scores of each row, best first. Ties: the smaller column comes first.

    Args:
        scores: (rows, columns).
        count: Number of columns to return; at most `columns`.

    Returns:
        (rows, count) int64.
    """
    values, columns = scores.topk(count, dim=1)
    # `topk` does not define the order of equal scores, nor which of them it includes.
    has_more = (scores >= values[:, -1:]).sum(dim=1) > count
    if has_more.any():
        columns[has_more] = scores[has_more].sort(dim=1, descending=True, stable=True).indices[:, :count]
    columns = columns.sort(dim=1).values
    order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)
