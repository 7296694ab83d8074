"""Selects the trained parameters of a model by shell patterns of their names.

A frozen parameter has no gradient, no optimizer state and no moving average. Layers below the lowest trained parameter
run without an autograd graph.
"""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from framework.errors import ConfigError

_SHOWN_NAMES = 3


def freeze(model: nn.Module, patterns: Iterable[str], key: str) -> None:
    """Freezes the parameters that match any of the patterns, in place. Call it before the model is parallelized.

    Args:
        model: Model, possibly on the meta device. A tied parameter has its first name only.
        patterns: Shell patterns of names as in `model.named_parameters()`, such as "encoder.layers.0.*".
        key: Config key of the patterns, for messages.

    Raises:
        ConfigError: A pattern matches no parameter, or all parameters are frozen.
    """
    frozen = names_matched([name for name, _ in model.named_parameters()], patterns, key)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if frozen and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"`{key}` is {list(patterns)}, which freezes all parameters. At least one must be trained. Keep a part of "
            "the model, for example the head with encoder.*."
        )


def freeze_others(model: nn.Module, patterns: Iterable[str], key: str) -> None:
    """Freezes the parameters that match none of the patterns, in place.

    Args:
        model: Model, as in `freeze`.
        patterns: Shell patterns of the names of trained parameters.
        key: Config key of the patterns, for messages.

    Raises:
        ConfigError: A pattern matches no parameter.
    """
    trained = names_matched([name for name, _ in model.named_parameters()], patterns, key)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


def names_matched(names: list[str], patterns: Iterable[str], key: str) -> set[str]:
    """Returns the names that match any of the patterns.

    Raises:
        ConfigError: A pattern matches none. The message suggests similar names.
    """
    matched: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            near = difflib.get_close_matches(pattern, names, n=_SHOWN_NAMES, cutoff=0.0)
            raise ConfigError(
                f"`{key}` has the pattern {pattern!r}, which matches no parameter of the model. Similar names "
                f"are {', '.join(near)}. To match all parameters of a module, end the pattern with .*"
            )
        matched |= matches
    return matched
