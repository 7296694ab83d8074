"""Beam search over many sources at once; what scores the next tokens is a function, no model is known here.

Semantics are those of `generate(num_beams=N)` in transformers, with `early_stopping=False` (its default):

- The score of a finished hypothesis is the sum of its tokens' log-probabilities / (number of tokens, the end token
  included) ** length_penalty. This is not the penalty of Wu et al. 2016 (arXiv:1609.08144, section 7), which divides by
  ((5 + number) / 6) ** alpha; both prefer longer targets as the exponent grows, 0 takes plain sums.
- At each length the continuations of a source are ranked by their sums. Those among the first `num_beams` that end are
  finished; the first `num_beams` that do not end live on.
- A source is done when it has `num_beams` finished hypotheses and the best living one, were it to end now, would not
  beat the worst of them. At `max_length` tokens all living ones end as they are.

Of equal sums the continuation of the better hypothesis wins, then the smaller token id; of equal scores the hypothesis
that was finished first. With one beam this is greedy search.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from framework.errors import ConfigError


@dataclass(frozen=True)
class SearchSettings:
    """How targets are searched for.

    Attributes:
        num_beams: Hypotheses of a source that are kept at each length; 1 is greedy search.
        length_penalty: Exponent of the length by which sums are divided; 0 prefers short targets.
        max_length: Most tokens of a target that is found, the start token left out, the end token included.

    Raises:
        ConfigError: There is no beam, or no room for a token.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    max_length: int = 128

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"search.{name} is {getattr(self, name)}, it must be at least 1; raise it.")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One target, finished or not.

    Attributes:
        tokens: Ids, the start token left out, the end token included where it came.
        score: Sum of log-probabilities while it lives, divided for its length when it is finished.
    """

    tokens: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True)
class LivingTokens:
    """The last tokens of all hypotheses that live, those of one source after those of another.

    Attributes:
        tokens: One for each hypothesis.
        parents: Places, in the call before, of the hypotheses that these continue; for the first call those of the
            sources.
        sizes: Hypotheses of each source; 0 where a source is done.
    """

    tokens: list[int]
    parents: list[int]
    sizes: list[int]


NextScores = Callable[[LivingTokens], Tensor]
"""Maps the living hypotheses to log-probabilities of what comes next, (hypotheses, vocab)."""


@dataclass(slots=True)
class _Source:
    """The state of one source's search: what lives, best first, and what is finished, best first."""

    living: list[Hypothesis] = field(default_factory=lambda: [Hypothesis((), 0.0)])
    finished: list[Hypothesis] = field(default_factory=list)


def beam_search(
    next_scores: NextScores, num_sources: int, start_id: int, end_id: int, settings: SearchSettings
) -> list[list[Hypothesis]]:
    """Finds good targets.

    Args:
        next_scores: Is called once for each length.
        num_sources: Independent searches.
        start_id: What every target begins with.
        end_id: What ends a target.
        settings: Width, length penalty and longest target.

    Returns:
        For each source the finished hypotheses, best first, at least 1 and at most `num_beams`.
    """
    sources = [_Source() for _ in range(num_sources)]
    last = LivingTokens([start_id] * num_sources, list(range(num_sources)), [1] * num_sources)
    for length in range(1, settings.max_length + 1):
        if not last.tokens:
            break
        candidates = iter(_best_continuations(next_scores(last), settings.num_beams + 1))
        tokens, parents, sizes = [], [], []
        first = 0
        for source in sources:
            size = len(source.living)
            rows = [next(candidates) for _ in range(size)]
            places = _advance(source, rows, end_id, length, settings)
            tokens += [hypothesis.tokens[-1] for hypothesis in source.living]
            parents += [first + place for place in places]
            sizes.append(len(places))
            first += size
        last = LivingTokens(tokens, parents, sizes)
    return [source.finished for source in sources]


def _advance(
    source: _Source,
    rows: Sequence[Sequence[tuple[int, float]]],
    end_id: int,
    length: int,
    settings: SearchSettings,
) -> list[int]:
    """Lets a source's hypotheses grow by one token; returns the parents of those that live on, by place."""
    is_last = length == settings.max_length
    continuations = sorted(_continuations(source.living, rows), key=lambda each: (-each[0], each[1], each[2]))
    living: list[Hypothesis] = []
    places: list[int] = []
    for order, (total, place, token) in enumerate(continuations):
        if order >= settings.num_beams and (is_last or len(living) == settings.num_beams):
            break
        tokens = (*source.living[place].tokens, token)
        if token == end_id or is_last:
            if order < settings.num_beams:
                source.finished.append(Hypothesis(tokens, total / length**settings.length_penalty))
        elif len(living) < settings.num_beams:
            living.append(Hypothesis(tokens, total))
            places.append(place)
    source.finished = sorted(source.finished, key=lambda each: -each.score)[: settings.num_beams]
    source.living = living
    if living and len(source.finished) == settings.num_beams:
        best = living[0].score / length**settings.length_penalty
        if best <= source.finished[-1].score:
            source.living, places = [], []
    return places


def _continuations(
    living: Sequence[Hypothesis], rows: Sequence[Sequence[tuple[int, float]]]
) -> Iterator[tuple[float, int, int]]:
    """Sum, place of the hypothesis and token of each continuation that may be among the best."""
    for place, (hypothesis, row) in enumerate(zip(living, rows, strict=True)):
        for token, value in row:
            yield hypothesis.score + value, place, token


def _best_continuations(scores: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """The best tokens of each row with their scores; more than `num_beams` + 1 of one row can never be needed."""
    tokens = best_columns(scores, min(count, scores.shape[1]))
    values = scores.gather(1, tokens)
    return [
        list(zip(row, row_values, strict=True))
        for row, row_values in zip(tokens.tolist(), values.tolist(), strict=True)
    ]


def best_columns(scores: Tensor, count: int) -> Tensor:
    """The columns of the largest scores of each row, best first; of equal scores the smaller column comes first.

    Args:
        scores: (rows, columns).
        count: At most `columns`.

    Returns:
        (rows, count) int64.
    """
    values, columns = scores.topk(count, dim=1)
    # `topk` promises nothing about equal scores: neither which of them it takes at the edge, nor their order.
    has_more = (scores >= values[:, -1:]).sum(dim=1) > count
    if has_more.any():
        columns[has_more] = scores[has_more].sort(dim=1, descending=True, stable=True).indices[:, :count]
    columns = columns.sort(dim=1).values
    order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)
