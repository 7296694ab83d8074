"""The growing batch in closed form, compared with loops over the steps."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.planning.batch_size import BatchWarmup, sequences_before, sequences_of, steps_until
from framework.errors import ConfigError

warmups = st.one_of(st.none(), st.builds(BatchWarmup, st.integers(1, 50), st.integers(1, 60)))


def slow_sequences_before(step: int, size: int, warmup: BatchWarmup | None) -> int:
    """Adds up, for each step, the value at its middle on the line from the start to the full size."""
    total = Fraction(0)
    for done in range(step):
        if warmup is not None and done < warmup.steps:
            total += warmup.start + (size - warmup.start) * (done + Fraction(1, 2)) / warmup.steps
        else:
            total += size
    return int(total)


def test_a_growing_batch_by_hand():
    before = [sequences_before(step, 6, BatchWarmup(start=2, steps=4)) for step in range(8)]
    # 2 s + s^2 / 2 up to step 4, then 6 per step.
    assert before == [0, 2, 6, 10, 16, 22, 28, 34]


@given(st.integers(0, 130), st.integers(0, 80), warmups)
def test_the_closed_form_is_the_sum_over_steps(step, more, warmup):
    size = more + (warmup.start if warmup else 1)
    assert sequences_before(step, size, warmup) == slow_sequences_before(step, size, warmup)


@given(st.integers(0, 10**12), st.integers(0, 10**6), warmups)
def test_a_step_lies_between_start_and_full_size(step, more, warmup):
    start = warmup.start if warmup else 1 + more
    size = start + more
    taken = sequences_before(step + 1, size, warmup) - sequences_before(step, size, warmup)
    assert start <= taken <= size
    if warmup is None or step >= warmup.steps:
        assert taken == size


@given(st.integers(0, 2000), st.integers(0, 80), warmups)
def test_steps_until_is_the_first_step_with_enough(num_sequences, more, warmup):
    size = more + (warmup.start if warmup else 1)
    step = 0
    while sequences_before(step, size, warmup) < num_sequences:
        step += 1
    assert steps_until(num_sequences, size, warmup) == step


def test_tokens_become_whole_sequences():
    assert sequences_of(4096, 100.0) == 41
    assert sequences_of(4096, 128.0) == 32
    assert sequences_of(10, 128.0) == 1


@pytest.mark.parametrize(("start", "steps", "name"), [(0, 5, "batch_warmup_start"), (5, 0, "batch_warmup_steps")])
def test_an_empty_warmup_is_rejected(start, steps, name):
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        BatchWarmup(start, steps)
