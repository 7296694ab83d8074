"""The problems by name, and a function that builds one from the settings of the task."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from framework.errors import ConfigError, check_choice
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
    """Builds a problem from its own settings.

    Args:
        name: Key of `PROBLEMS`.
        settings: Settings of all problems by parameter name.

    Raises:
        ConfigError: The name is unknown, a setting of another problem differs from its default, or the problem rejects
            one of its own settings.
    """
    check_choice("task.problem", name, PROBLEMS)
    own = inspect.signature(PROBLEMS[name]).parameters
    for owner, problem in PROBLEMS.items():
        for key, parameter in inspect.signature(problem).parameters.items():
            if key not in own and settings[key] != parameter.default:
                raise ConfigError(
                    f"task.{key} is {settings[key]!r}, but task.problem={name} does not use it. It must keep its "
                    f"default. Set it to {parameter.default!r}, or set task.problem={owner}."
                )
    return PROBLEMS[name](**{key: settings[key] for key in own})
