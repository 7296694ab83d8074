"""Cadence: the steps at which rows, validations and checkpoints are due."""

from framework.callbacks.cadence import Cadence


def due(cadence: Cadence, what: str) -> list[int]:
    return [step for step in range(1, 11) if getattr(cadence, what)(step)]


def test_intervals_and_the_end():
    cadence = Cadence(max_steps=10, log_every_n_steps=4, validate_every_n_steps=3, checkpoint_every_n_steps=7)
    assert due(cadence, "logs") == [4, 8, 10]
    assert due(cadence, "validates") == [3, 6, 9, 10]
    assert due(cadence, "saves") == [7, 10]


def test_without_validation_data_nothing_is_validated_and_the_last_step_is_saved():
    cadence = Cadence(max_steps=10)
    assert due(cadence, "validates") == []
    assert due(cadence, "saves") == [10]
