"""The FLOPs of a step that `perf/mfu` is computed from."""

from types import SimpleNamespace
from typing import Any

from torch import nn

from framework.runs.session import _step_flops
from framework.tasks.task import TaskModel
from tests.support.models.shapes import BERT


def parts(model: nn.Module, term: str | None) -> Any:
    return SimpleNamespace(model=model, config=BERT, task=SimpleNamespace(vocabulary_term=term))


def model() -> TaskModel:
    return TaskModel(nn.Linear(1, 1), nn.Linear(1, 1))


def step() -> Any:
    """Two micro-batches: sequences of 10 and 4 tokens, and one of 7; dummies of 2 and 3 tokens."""
    first = SimpleNamespace(lengths=(10, 4, 2), num_sequences=2, counts={"mlm": 2.0})
    second = SimpleNamespace(lengths=(7, 3), num_sequences=1, counts={"mlm": 1.0})
    return SimpleNamespace(micro_batches=(first, second))


def test_real_sequences_and_predicted_words_of_all_micro_batches_count() -> None:
    encoder = 6 * 21_504 * 21 + 12 * 32 * 3 * (100 + 16 + 49)
    count = _step_flops(parts(model(), None))
    assert count is not None and count(step()) == encoder
    count = _step_flops(parts(model(), "mlm"))
    assert count is not None and count(step()) == encoder + 6 * 3 * (32 * 32 + 32 * 50)


def test_frozen_parameters_have_no_flops() -> None:
    assert _step_flops(parts(model().requires_grad_(False), None)) is None
