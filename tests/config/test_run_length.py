"""How large the steps of a run are and how many it has, from the trainer's keys and the training split."""

from dataclasses import replace

import pytest

from framework.config.build import resolve_global_batch_size, run_length
from framework.config.schema import TrainerConfig
from framework.data.planning.batch_size import BatchWarmup
from framework.errors import ConfigError
from tests.data.sequences import NumberedSource

TRAINER = TrainerConfig(max_steps=None, max_epochs=3, global_batch_size=4, micro_batch_tokens=100)


class Measured(NumberedSource):
    mean_length = 12.5


def test_a_step_is_given_in_sequences_or_in_tokens():
    source = Measured(100)
    assert resolve_global_batch_size(TRAINER, source) == 4
    in_tokens = replace(TRAINER, global_batch_size=None, global_batch_tokens=1000)
    assert resolve_global_batch_size(in_tokens, source) == 80


def test_epochs_become_steps():
    # 30 sequences in 4s: in one stream, or each epoch with a short step at its end.
    assert run_length(TRAINER, 4, 10, wraps_epochs=True) == 8
    assert run_length(TRAINER, 4, 10, wraps_epochs=False) == 9
    assert run_length(replace(TRAINER, max_steps=5), 4, 10, wraps_epochs=True) == 5


def test_a_growing_batch_takes_more_steps():
    # Steps of 1, 2, 3 and then 4 sequences: after them 1, 3, 6, 10, 14, 18, 22, 26 and 30.
    growing = replace(TRAINER, batch_warmup_start=1, batch_warmup_steps=4)
    assert growing.batch_warmup == BatchWarmup(1, 4)
    assert run_length(growing, 4, 10, wraps_epochs=True) == 9
    assert TRAINER.batch_warmup is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_tokens": 9}, "is 4 and `trainer.global_batch_tokens` is 9, but exactly one"),
        ({"global_batch_size": None}, "is None and `trainer.global_batch_tokens` is None, but exactly one"),
        ({"batch_warmup_start": 2}, "`trainer.batch_warmup_start` is 2 and `trainer.batch_warmup_steps` is None"),
        ({"global_batch_size": 0}, "`trainer.global_batch_size` is 0"),
        ({"global_batch_size": None, "global_batch_tokens": 0}, "`trainer.global_batch_tokens` is 0"),
        ({"batch_warmup_start": 0, "batch_warmup_steps": 3}, "`trainer.batch_warmup_start` is 0"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(TRAINER, **changes)
