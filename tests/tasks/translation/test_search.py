"""Beam search compared with enumeration, with greedy search, and with a slow search over strings of tokens."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from framework.errors import ConfigError
from framework.tasks.translation.search import ActiveTokens, SearchSettings, beam_search, best_columns

START, END = 3, 0
VOCAB, MAX_LENGTH = 4, 4
Prefix = tuple[int, ...]
Distribution = Callable[[int, Prefix], list[float]]
"""Log-probabilities after a prefix of a source's target."""


def random_distribution(source: int, prefix: Prefix) -> list[float]:
    seed = 1 + source + 10 * sum((token + 1) * 7**index for index, token in enumerate(prefix))
    logits = 2.0 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(0).tolist()


class Toy:
    """Returns scores from a table of prefixes; tracks the beginning of each hypothesis by its parents."""

    def __init__(self, distribution: Distribution, num_sources: int) -> None:
        self.distribution = distribution
        self.prefixes: list[tuple[int, Prefix]] = [(source, ()) for source in range(num_sources)]
        self.sizes: list[list[int]] = []

    def __call__(self, active: ActiveTokens) -> Tensor:
        is_first = not self.sizes
        self.sizes.append(active.sizes)
        before = [self.prefixes[parent] for parent in active.parents]
        tokens = [()] * len(before) if is_first else [(token,) for token in active.tokens]
        assert not is_first or active.tokens == [START] * len(before)
        self.prefixes = [(source, prefix + token) for (source, prefix), token in zip(before, tokens, strict=True)]
        owners = [source for source, size in enumerate(active.sizes) for _ in range(size)]
        assert [source for source, _ in self.prefixes] == owners
        return torch.tensor([self.distribution(source, prefix) for source, prefix in self.prefixes])


def search(distribution: Distribution, num_sources: int, num_beams: int, penalty: float, max_length: int = MAX_LENGTH):
    toy = Toy(distribution, num_sources)
    return beam_search(toy, num_sources, START, END, SearchSettings(num_beams, penalty, max_length)), toy


def all_targets(source: int, penalty: float) -> list[tuple[float, Prefix]]:
    """Enumerates all targets, best first: those that end, and those truncated at the maximum length."""
    targets = []
    for length in range(1, MAX_LENGTH + 1):
        for tokens in itertools.product(range(VOCAB), repeat=length):
            if END in tokens[:-1] or (tokens[-1] != END and length < MAX_LENGTH):
                continue
            total = sum(random_distribution(source, tokens[:index])[token] for index, token in enumerate(tokens))
            targets.append((total / length**penalty, tokens))
    return sorted(targets, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_beam_as_wide_as_all_targets_returns_them_in_order(penalty: float) -> None:
    actual, _ = search(random_distribution, 8, VOCAB**MAX_LENGTH, penalty)
    for source, hypotheses in enumerate(actual):
        expected = all_targets(source, penalty)
        assert [hypothesis.tokens for hypothesis in hypotheses] == [tokens for _, tokens in expected]
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == pytest.approx([score for score, _ in expected], rel=1e-5)
    assert len({hypotheses[0].tokens for hypotheses in actual}) > 1


def greedy(source: int) -> Prefix:
    tokens: Prefix = ()
    while len(tokens) < MAX_LENGTH and END not in tokens:
        scores = random_distribution(source, tokens)
        tokens = (*tokens, scores.index(max(scores)))
    return tokens


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_one_beam_is_greedy(penalty: float) -> None:
    actual, _ = search(random_distribution, 20, 1, penalty)
    assert [[hypothesis.tokens for hypothesis in hypotheses] for hypotheses in actual] == [
        [greedy(source)] for source in range(20)
    ]
    assert {len(greedy(source)) for source in range(20)} == {1, 2, 3, 4}


def slow_search(source: int, num_beams: int, penalty: float) -> list[tuple[float, Prefix]]:
    """Applies the rule of the module's docstring to one source, with dictionaries of strings of tokens."""
    active, finished = {(): 0.0}, {}
    for length in range(1, MAX_LENGTH + 1):
        grown = {
            (*prefix, token): total + random_distribution(source, prefix)[token]
            for prefix, total in active.items()
            for token in range(VOCAB)
        }
        ranked = sorted(grown, key=grown.get, reverse=True)
        for tokens in ranked[:num_beams]:
            if tokens[-1] == END or length == MAX_LENGTH:
                finished[tokens] = grown[tokens] / length**penalty
        finished = dict(sorted(finished.items(), key=lambda item: -item[1])[:num_beams])
        active = {tokens: grown[tokens] for tokens in [each for each in ranked if each[-1] != END][:num_beams]}
        if len(finished) == num_beams and max(active.values()) / length**penalty <= min(finished.values()):
            break
    return [(score, tokens) for tokens, score in finished.items()]


@pytest.mark.parametrize("num_beams", [2, 3])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.0])
def test_a_narrow_beam_follows_the_rule(num_beams: int, penalty: float) -> None:
    actual, toy = search(random_distribution, 20, num_beams, penalty)
    for source, hypotheses in enumerate(actual):
        expected = slow_search(source, num_beams, penalty)
        assert [hypothesis.tokens for hypothesis in hypotheses] == [tokens for _, tokens in expected]
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == pytest.approx([score for score, _ in expected], rel=1e-5)
    # Some sources end before the others, and only then cost nothing more.
    assert toy.sizes[0] == [1] * 20
    assert 0 in toy.sizes[-1]


def test_a_beam_finds_targets_that_greedy_search_misses() -> None:
    table = {
        (): [0.1, 0.5, 0.4, 0.0],
        (1,): [0.3, 0.3, 0.2, 0.2],
        (2,): [0.9, 0.1, 0.0, 0.0],
    }

    def distribution(source: int, prefix: Prefix) -> list[float]:
        return [math.log(max(prob, 1e-9)) for prob in table.get(prefix, [1.0, 0.0, 0.0, 0.0])]

    one, _ = search(distribution, 1, 1, 0.0)
    two, _ = search(distribution, 1, 2, 0.0)
    assert (one[0][0].tokens, two[0][0].tokens) == ((1, 0), (2, 0))
    assert math.exp(two[0][0].score) == pytest.approx(0.4 * 0.9)


def test_ties_prefer_the_better_hypothesis_then_the_smaller_token() -> None:
    def even(source: int, prefix: Prefix) -> list[float]:
        return [math.log(1 / VOCAB)] * VOCAB

    actual, toy = search(even, 2, 2, 0.0, max_length=3)
    # Of the first two continuations, tokens 0 and 1, the first ends. Of the remaining 1 and 2, the first token of
    # both ends again, but 1 has two continuations before 2 has any.
    assert [hypothesis.tokens for hypothesis in actual[0]] == [(0,), (1, 0)]
    assert actual[0] == actual[1]
    assert toy.prefixes[:2] == [(0, (1,)), (0, (2,))]


def test_best_columns_equal_those_of_a_stable_sort() -> None:
    scores = torch.randint(-3, 3, (50, 40), generator=torch.Generator().manual_seed(0)) / 2.0
    scores[0, 5], scores[1, :] = -math.inf, 0.25
    expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :7]
    assert torch.equal(best_columns(scores, 7), expected)


def test_sizes_below_1_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"search\.num_beams is 0\. It must be at least 1"):
        SearchSettings(num_beams=0)
    with pytest.raises(ConfigError, match=r"search\.max_length is 0\. It must be at least 1"):
        SearchSettings(max_length=0)
