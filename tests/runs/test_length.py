"""The size and number of the steps of a run, from the trainer's keys and the training split."""

from dataclasses import replace

import pytest

from framework.config.nodes import check_arguments
from framework.config.schema import TrainerConfig
from framework.data.planning.batch_size import BatchWarmup, TokenSteps
from framework.errors import ConfigError
from framework.runs.length import resolve_global_batch_size, run_length, token_steps_of
from tests.support.data.sequences import NumberedSource

TRAINER = TrainerConfig(max_steps=None, max_epochs=3, global_batch_size=4, micro_batch_tokens=100)


class Measured(NumberedSource):
    mean_length = 12.5


SOURCE = Measured(10)


def test_a_step_is_given_in_sequences_or_in_tokens():
    source = Measured(100)
    assert resolve_global_batch_size(TRAINER, source) == 4
    in_tokens = replace(TRAINER, global_batch_size=None, global_batch_tokens=1000)
    assert resolve_global_batch_size(in_tokens, source) == 80


def test_epochs_become_steps():
    # 30 sequences in 4s: in one stream, or each epoch with a short step at its end.
    assert run_length(TRAINER, token_steps_of(TRAINER, SOURCE), 10, wraps_epochs=True) == 8
    assert run_length(TRAINER, token_steps_of(TRAINER, SOURCE), 10, wraps_epochs=False) == 9
    assert run_length(replace(TRAINER, max_steps=5), token_steps_of(TRAINER, SOURCE), 10, wraps_epochs=True) == 5


def test_a_growing_batch_takes_more_steps():
    # Steps of 1, 2, 3 and then 4 sequences: after them 1, 3, 6, 10, 14, 18, 22, 26 and 30.
    growing = replace(TRAINER, batch_warmup_start=1, batch_warmup_steps=4)
    assert token_steps_of(growing, SOURCE) == TokenSteps(12.5, 4, BatchWarmup(1, 4))
    assert run_length(growing, token_steps_of(growing, SOURCE), 10, wraps_epochs=True) == 9


def test_lengths_in_tokens_become_steps():
    """Sequences have 12.5 tokens and full steps 4 sequences, so a full step has 50 tokens."""
    in_tokens = replace(TRAINER, max_epochs=None, max_tokens=1000)
    assert run_length(in_tokens, token_steps_of(in_tokens, SOURCE), 10, wraps_epochs=True) == 20
    # Steps of about 2 to 4 sequences, 37.5 tokens on average: 8 of them have 300 tokens, and then 14 steps have 700.
    growing = replace(in_tokens, batch_warmup_start=2, batch_warmup_tokens=300)
    steps = token_steps_of(growing, SOURCE)
    assert steps.batch_warmup == BatchWarmup(2, 8)
    assert (steps.tokens(8), steps.tokens(22), steps.steps(300), steps.steps(1000)) == (300.0, 1000.0, 8, 22)
    assert run_length(growing, steps, 10, wraps_epochs=True) == 22


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 3, "max_tokens": 9}, "`trainer.max_steps` is 3 and `trainer.max_tokens` is 9. Only one"),
        ({"max_epochs": None}, "`trainer.max_steps`, `trainer.max_tokens` and `trainer.max_epochs` are null"),
        ({"max_tokens": 0}, "`trainer.max_tokens` is 0"),
        (
            {"batch_warmup_start": 2, "batch_warmup_steps": 3, "batch_warmup_tokens": 9},
            "`trainer.batch_warmup_steps` is 3 and `trainer.batch_warmup_tokens` is 9. A growing batch needs a start",
        ),
        ({"global_batch_tokens": 9}, "is 4 and `trainer.global_batch_tokens` is 9. Exactly one"),
        ({"global_batch_size": None}, "is None and `trainer.global_batch_tokens` is None. Exactly one"),
        ({"batch_warmup_start": 2}, "`trainer.batch_warmup_start` is 2, `trainer.batch_warmup_steps` is None"),
        ({"global_batch_size": 0}, "`trainer.global_batch_size` is 0"),
        ({"global_batch_size": None, "global_batch_tokens": 0}, "`trainer.global_batch_tokens` is 0"),
        ({"batch_warmup_start": 0, "batch_warmup_steps": 3}, "`trainer.batch_warmup_start` is 0"),
    ],
)
def test_contradictions_are_rejected(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(TRAINER, **changes)


@pytest.mark.parametrize(("given", "bound"), [(None, None), (0, None), (0.0, None), (0.5, 0.5)])
def test_a_clip_of_zero_is_no_clip_as_in_lightning(given, bound):
    assert replace(TRAINER, gradient_clip=given).max_grad_norm == bound


@pytest.mark.parametrize("key", ["gradient_clip", "early_stopping_min_delta", "ema_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_non_finite_number_reaches_the_trainer(key, value):
    keys = {"max_steps": 1, "max_epochs": None, "global_batch_size": 4, "micro_batch_tokens": 100, key: value}
    with pytest.raises(ConfigError, match=f"`trainer.{key}` is {value}. It must be a finite number"):
        check_arguments("trainer", keys, TrainerConfig)
