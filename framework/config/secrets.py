"""Masks secrets in saved configs: values from the environment, typed secrets, and credentials in URLs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from framework.config.nodes import TARGET_KEY
from framework.data.reading.credentials import (
    HIDDEN,
    may_be_number,
    names_connection,
    names_secret,
    without_credentials,
    without_secret_pairs,
)

MASK = "*** from the environment, not saved ***"


class _Environment:
    """Resolver of environment variables that hides secrets and replaces OmegaConf's own resolver.

    Attributes:
        hides_all: Hide every variable, not only those with names of secrets.
    """

    def __init__(self) -> None:
        self.hides_all = False

    def __call__(self, name: str, *default: Any) -> Any:
        return HIDDEN if self.hides_all or names_secret(name) else oc.env(name, *default)


@contextmanager
def _replaced_environment() -> Iterator[_Environment]:
    environment = _Environment()
    OmegaConf.register_new_resolver("oc.env", environment, replace=True)
    try:
        yield environment
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def masked(composed: DictConfig, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of the resolved config with masked secrets.

    A text that depends on an environment variable, directly or through other interpolations, is masked if the variable
    or the key has the name of a secret (`names_secret`). Typed secrets are hidden as in `without_typed_secrets`.
    Numbers from the environment are never masked. Credentials in URLs are always hidden, and so are passwords in
    connection strings from the environment.

    Compare a saved config only with a masked config. Otherwise a changed password would make a new run.

    Args:
        composed: Config before interpolations were resolved.
        config: The same config, resolved.
    """
    with _replaced_environment() as environment:
        shown = {name: _masked(environment, composed, name, value, False) for name, value in config.items()}
    return without_typed_secrets(shown)


def without_typed_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a config in plain containers with typed secrets hidden.

    Hides every text whose key, or the key of an enclosing group, has the name of a secret. Also hides credentials in
    URLs and passwords in connection strings. A number is hidden only if its own key names a password. A second call
    changes nothing.
    """
    return {name: _without_typed(name, value, False) for name, value in config.items()}


def _without_typed(name: str, value: Any, in_secret: bool) -> Any:
    in_secret = in_secret or names_secret(name)
    if isinstance(value, Mapping):
        # The name of a class is not a secret, and the group cannot be read without it.
        return {
            key: item if key == TARGET_KEY else _without_typed(str(key), item, in_secret) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_typed(name, item, in_secret) for item in value]
    if isinstance(value, str):
        if in_secret and value:
            return value if value in (MASK, HIDDEN) else HIDDEN
        value = without_credentials(value)
        return without_secret_pairs(value) if names_connection(name) else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return HIDDEN if is_number and may_be_number(name) else value


def is_masked(value: Any) -> bool:
    """Returns True if a value, or a part of it, is masked."""
    return isinstance(value, str) and (MASK in value or HIDDEN in value)


def _masked(environment: _Environment, parent: Any, name: str | int, value: Any, in_secret: bool) -> Any:
    """Returns the masked value of a key.

    Args:
        environment: Resolver that selects the hidden variables.
        parent: Container of the config before interpolations were resolved; None: the value was not in that config.
        name: Key or index in `parent`.
        value: Resolved value.
        in_secret: True if an enclosing group has the name of a secret.
    """
    in_secret = in_secret or (isinstance(name, str) and names_secret(name))
    if not isinstance(value, Mapping | list | str):
        return value
    try:
        shown = _resolved(environment, parent, name, in_secret)
    except OmegaConfBaseException:
        return _without_texts(value)  # a resolver that fails on the hidden value depends on it
    if isinstance(value, str):
        return _masked_leaf(environment, parent, name, value, shown)
    inner = shown if isinstance(shown, Container) else None
    if inner is None and shown is not None and shown != value:
        return _without_texts(value)  # decoded from a text that holds a secret
    if isinstance(value, Mapping):
        return {key: _masked(environment, inner, key, item, in_secret) for key, item in value.items()}
    return [_masked(environment, inner, index, item, in_secret) for index, item in enumerate(value)]


def _masked_leaf(environment: _Environment, parent: Any, name: str | int, value: str, shown: Any) -> str:
    """Returns the masked text of a leaf.

    Args:
        environment: See `_masked`.
        parent: See `_masked`.
        name: See `_masked`.
        value: Resolved text.
        shown: Value that results when secrets are hidden; None: the key was not in the config.
    """
    if shown is not None and shown != value:
        return without_credentials(shown) if isinstance(shown, str) and shown != HIDDEN else MASK
    value = without_credentials(value)
    try:
        is_of_environment = shown is not None and _resolved(environment, parent, name, True) != shown
    except OmegaConfBaseException:
        is_of_environment = True
    return without_secret_pairs(value) if is_of_environment else value


def _without_texts(value: Any) -> Any:
    """Returns a copy of a value with every text masked."""
    if isinstance(value, Mapping):
        return {key: _without_texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_texts(item) for item in value]
    return MASK if isinstance(value, str) else value


def _resolved(environment: _Environment, parent: Any, name: str | int, hides_all: bool) -> Any:
    """Resolves a key with the replaced resolver of environment variables; None if the config lacks the key."""
    in_group = isinstance(parent, DictConfig) and not parent._is_none() and name in parent.keys()  # noqa: SIM118
    in_list = isinstance(parent, ListConfig) and not parent._is_none() and int(name) < len(parent)
    if not in_group and not in_list:
        return None
    environment.hides_all = hides_all
    return parent[name]


def find_masked(node: Any, path: str) -> str | None:
    """Returns the first key of a saved tree whose value is masked, or None."""
    if isinstance(node, Mapping):
        items = ((f"{path}.{name}", value) for name, value in node.items())
    elif isinstance(node, list | tuple):
        items = ((f"{path}[{index}]", value) for index, value in enumerate(node))
    else:
        return path if is_masked(node) else None
    return next((masked for key, value in items if (masked := find_masked(value, key)) is not None), None)
