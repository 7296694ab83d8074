"""Factors computed by hand, and impossible schedules."""

import math

import pytest

from framework.data.planning.batch_size import TokenSteps
from framework.errors import ConfigError
from framework.optim.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay

STEPS = TokenSteps(mean_length=25.0, global_batch_size=4)


def factors(schedule: Schedule) -> list[float]:
    return [round(schedule(step), 6) for step in range(schedule.max_steps + 1)]


def test_constant() -> None:
    assert factors(Constant(4)) == [1.0] * 5
    assert factors(Constant(4, warmup_steps=2)) == [0.5, 1.0, 1.0, 1.0, 1.0]


def test_linear_by_hand() -> None:
    assert factors(Linear(8, warmup_steps=4)) == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert factors(Linear(8, warmup_fraction=0.5)) == factors(Linear(8, warmup_steps=4))
    assert factors(Linear(4, final_factor=0.2)) == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert Linear(4)(100) == 0.0


def test_cosine_by_hand() -> None:
    quarter = round(0.5 * (1 + math.sqrt(0.5)), 6)
    assert factors(Cosine(5, warmup_steps=1)) == [1.0, 1.0, quarter, 0.5, round(1 - quarter, 6), 0.0]
    assert Cosine(4, final_factor=0.1)(4) == pytest.approx(0.1)


def test_warmup_stable_decay_by_hand() -> None:
    schedule = WarmupStableDecay(8, warmup_steps=2, decay_fraction=0.5)
    tail = [round(1 - math.sqrt(part), 6) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert factors(schedule) == [0.5, 1.0, 1.0, 1.0, *tail]
    assert factors(WarmupStableDecay(3)) == [1.0] * 4
    assert factors(WarmupStableDecay(3, warmup_steps=3))[:3] == [round(1 / 3, 6), round(2 / 3, 6), 1.0]


def test_lengths_in_tokens() -> None:
    """A step has 4 sequences of 25 tokens."""
    assert factors(Linear(8, warmup_tokens=400, token_steps=STEPS)) == factors(Linear(8, warmup_steps=4))
    in_tokens = WarmupStableDecay(8, warmup_tokens=150, decay_tokens=400, token_steps=STEPS)
    assert factors(in_tokens) == factors(WarmupStableDecay(8, warmup_steps=2, decay_steps=4))
    assert factors(WarmupStableDecay(8, decay_tokens=5000, token_steps=STEPS)) == factors(
        WarmupStableDecay(8, decay_steps=8)
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Linear(8, warmup_steps=1, warmup_fraction=0.1), "are set together"),
        (lambda: Linear(8, warmup_fraction=1.5), "warmup_fraction is 1.5"),
        (lambda: Cosine(8, warmup_steps=9), "warmup_steps is 9"),
        (lambda: Constant(8, warmup_steps=-1), "warmup_steps is -1"),
        (lambda: Linear(8, warmup_steps=1, warmup_tokens=9), "warmup_steps=1 and schedule.warmup_tokens=9 are set"),
        (lambda: Linear(8, warmup_tokens=-1, token_steps=STEPS), "warmup_tokens is -1"),
        (lambda: Linear(8, warmup_tokens=900, token_steps=STEPS), "warmup_steps is 9"),
        (lambda: WarmupStableDecay(8, warmup_steps=5, decay_steps=5), "Warm-up takes 5 and decay 5 of 8 steps"),
    ],
)
def test_impossible_schedules_are_named(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]
