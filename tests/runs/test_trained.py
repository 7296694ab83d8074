"""The keys of a task that evaluation and prediction may change."""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from framework.config.records import Record
from framework.errors import ConfigError
from framework.runs.trained import build_task
from framework.tasks.task import Task
from tests.support.tasks.commands import TASKS
from tests.support.tasks.recorded import recorded


def record(config: Mapping[str, Any], *trust: str) -> Record:
    return Record(Path("task.json"), "task", config, trust)


@pytest.mark.parametrize("name", TASKS)
def test_changeable_keys_are_keys_of_the_task(name):
    module = importlib.import_module(f"framework.tasks.{name}.task")
    (task,) = (
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Task) and value.__module__ == module.__name__
    )
    assert set(task.changeable_keys) <= set(inspect.signature(task).parameters)


def test_given_keys_change_and_others_stay():
    config = recorded("question_answering") | {"n_best": 7}
    task = build_task(record(config), {"no_answer_threshold": 0.5})
    assert (task.no_answer_threshold, task.n_best) == (0.5, 7)
    assert build_task(record(config), {}).no_answer_threshold is None
    search = build_task(record(recorded("translation")), {"search": {"num_beams": 1}}).search
    assert (search.num_beams, search.max_length) == (1, 128)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "question_answering",
            {"stride": 64},
            "`task.stride` is fixed by the training. Only .* may change",
        ),
        ("multiple_choice", {"pooling": "mean"}, "`task.pooling` .* No key of this task may change"),
        ("question_answering", {"n_best": "many"}, "`task.n_best` is 'many'"),
        ("translation", {"search": {"beams": 1}}, "unknown config key `task.search.beams`. Did you mean `num_beams`"),
    ],
)
def test_other_keys_and_bad_values_are_rejected(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        build_task(record(recorded(name)), changes)
