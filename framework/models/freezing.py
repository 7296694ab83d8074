"""Which parameters of a model are trained, by shell patterns on their names.

A frozen parameter has no gradient, no optimizer state and no moving average; what lies below the lowest trained one
runs without a graph, since autograd records nothing where nothing asks for a gradient.
"""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from framework.errors import ConfigError

_SHOWN_NAMES = 3


def freeze(model: nn.Module, patterns: Iterable[str], key: str) -> None:
    """Freezes the parameters that any of the patterns matches, in place; before the model is parallelized.

    Args:
        model: May be on the meta device. A tied parameter has its first name only.
        patterns: Shell patterns of names as in `model.named_parameters()`, such as "encoder.layers.0.*".
        key: The config key of the patterns, for messages.

    Raises:
        ConfigError: A pattern matches no parameter, or none is left to be trained.
    """
    frozen = names_matched([name for name, _ in model.named_parameters()], patterns, key)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if frozen and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"`{key}`={list(patterns)} freezes all parameters, so there is nothing to train; leave a part of the model "
            "free, for example the head with encoder.*."
        )


def freeze_others(model: nn.Module, patterns: Iterable[str], key: str) -> None:
    """Freezes the parameters that none of the patterns matches, in place.

    Args:
        model: As for `freeze`.
        patterns: Of those that are trained.
        key: The config key of the patterns, for messages.

    Raises:
        ConfigError: A pattern matches no parameter.
    """
    trained = names_matched([name for name, _ in model.named_parameters()], patterns, key)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


def names_matched(names: list[str], patterns: Iterable[str], key: str) -> set[str]:
    """The names that any of the patterns matches.

    Raises:
        ConfigError: A pattern matches none; the message gives names that are like it.
    """
    matched: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            near = difflib.get_close_matches(pattern, names, n=_SHOWN_NAMES, cutoff=0.0)
            raise ConfigError(
                f"`{key}` has the pattern {pattern!r}, which matches no parameter of the model; names like it are "
                f"{', '.join(near)}; for all of a module's parameters end the pattern with .*"
            )
        matched |= found
    return matched
