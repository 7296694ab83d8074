"""The problems by name, and how one is built from the settings of the task."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from framework.errors import ConfigError
from framework.tasks.sequence_classification.multi_label import MultiLabel
from framework.tasks.sequence_classification.problem import Problem
from framework.tasks.sequence_classification.regression import Regression
from framework.tasks.sequence_classification.single_label import SingleLabel

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "single_label": SingleLabel,
    "multi_label": MultiLabel,
    "regression": Regression,
}


def build_problem(name: str, settings: Mapping[str, Any]) -> Problem:
    """Builds a problem with those of the settings that it has.

    Args:
        name: A key of `PROBLEMS`.
        settings: Of all problems, by the names of their parameters.

    Raises:
        ConfigError: The name is not known, a setting of another problem is not at its default, or the problem refuses
            one of its own.
    """
    if name not in PROBLEMS:
        raise ConfigError(f"task.problem is {name!r}, it must be one of {', '.join(PROBLEMS)}.")
    taken = inspect.signature(PROBLEMS[name]).parameters
    for owner, problem in PROBLEMS.items():
        for key, parameter in inspect.signature(problem).parameters.items():
            if key not in taken and settings[key] != parameter.default:
                raise ConfigError(
                    f"{key} is {settings[key]!r}, but problem={name} has no use for it; leave it at "
                    f"{parameter.default!r}, or set problem to {owner}."
                )
    return PROBLEMS[name](**{key: settings[key] for key in taken})
