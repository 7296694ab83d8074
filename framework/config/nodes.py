"""Checks a config node against its target: a dataclass of `schema.py`, or the class that a `_target_` names.

Only the dataclasses of the schema are constructed here. A node with a `_target_` becomes a `Component`, which is built
later, when the values are known that only the run has.
"""

import difflib
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from framework.config.moved_classes import current_name
from framework.errors import ConfigError

TARGET_KEY = "_target_"

_PACKAGE = __name__.partition(".")[0]
_LARGEST = sys.float_info.max
"""Largest accepted number. It excludes NaN and infinity, which pass checks of bounds and break training."""

_VALUES = (str, int, float, Path, Mapping, Sequence, type(None))
"""Types of plain values. Any other type in a hint is a component that a nested `_target_` may build."""


@dataclass(frozen=True)
class Component:
    """A validated component; `build()` constructs it.

    Attributes:
        path: Config key of the component, for messages.
        target: Class or function that constructs it.
        arguments: Validated arguments. Nested components are not built yet.
    """

    path: str
    target: Callable[..., Any]
    arguments: Mapping[str, Any]

    def build(self, **supplied: Any) -> Any:
        """Constructs the component and its nested components.

        Args:
            supplied: Values that only the run has, such as the vocabulary size or the number of steps. Values that the
                target does not accept are ignored. Values of the config take precedence.
        """
        taken = inspect.signature(self.target).parameters
        given = {name: _built(value) for name, value in self.arguments.items()}
        return self.target(**{**{name: value for name, value in supplied.items() if name in taken}, **given})


def _built(value: Any) -> Any:
    if isinstance(value, Component):
        return value.build()
    if isinstance(value, list):
        return [_built(item) for item in value]
    if isinstance(value, dict):
        return {name: _built(item) for name, item in value.items()}
    return value


def suggestion(word: str, known: Collection[str]) -> str:
    """Suggests the closest valid key for a misspelt one, or lists all valid keys."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"Valid keys are {', '.join(sorted(known))}." if known else "No key is allowed here. Remove it."


def check_component(
    path: str, node: Any, supplied: Collection[str] = (), target: Callable[..., Any] | None = None
) -> Component:
    """Checks the node of a component against the signature and the type hints of its target.

    Args:
        path: Config key of the node, for messages.
        node: Node in plain containers, interpolations resolved.
        supplied: Parameters that the run supplies at build time. The node may omit them or set them to null.
        target: Class or function that the node configures; None: its `_target_` key names it.

    Raises:
        ConfigError: The target cannot be imported, a key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"`{path}` is {node!r}. It must be a group of keys. Choose an option with `{path}=NAME`.")
    values = dict(node)
    if target is None:
        if TARGET_KEY not in values:
            raise ConfigError(
                f"`{path}` has no `{TARGET_KEY}`. This key names the class that is built. Add it, or choose an option "
                f"with `{path}=NAME`."
            )
        target = import_target(path, values.pop(TARGET_KEY))
    return Component(path, target, check_arguments(path, values, target, supplied))


def import_target(path: str, name: Any) -> Callable[..., Any]:
    """Imports the class or function that a `_target_` names.

    Raises:
        ConfigError: The name cannot be imported, is not callable, or is a function of this package.
    """
    module_name, _, attribute = current_name(str(name)).rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"`{path}.{TARGET_KEY}` is {name!r}, which cannot be imported ({error}). It must be the full path of a "
            "class. Correct the path."
        ) from error
    # Functions of this package are rejected, because a config must not be able to delete a folder, for example.
    if not _has_signature(target) or (is_own(module_name) and not inspect.isclass(target)):
        raise ConfigError(
            f"`{path}.{TARGET_KEY}` is {name!r}, which is not a class with a signature. It must be the full path of a "
            "class. Correct the path."
        )
    return target


def _has_signature(target: Any) -> bool:
    """Returns True for classes and functions whose parameters are known; some builtin types have no signature."""
    try:
        inspect.signature(target)
    except (TypeError, ValueError):
        return False
    return True


def is_own(module: str) -> bool:
    """Returns whether a module belongs to this package."""
    return module == _PACKAGE or module.startswith(_PACKAGE + ".")


def check_arguments(
    path: str, values: Mapping[str, Any], target: Callable[..., Any], supplied: Collection[str] = ()
) -> dict[str, Any]:
    """Checks the keys and types of a node, and returns its arguments converted to the types of the hints.

    Args:
        path: Config key of the node, for messages; empty for the root.
        values: Values of the node, by key.
        target: Class or function whose parameters the keys are.
        supplied: Parameters that the run supplies at build time. The node may omit them or set them to null.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type.
    """
    parameters = dict(inspect.signature(target).parameters)
    hints = hints_of(target)
    prefix = f"{path}." if path else ""
    groups = {name: kind for name, kind in flat_groups(target).items() if name in parameters}
    of_groups = {field.name: name for name, kind in groups.items() for field in fields(kind)}
    known = set(parameters) - set(groups) | set(of_groups)
    for name in values:
        if name not in known:
            raise ConfigError(f"unknown config key `{prefix}{name}`. {suggestion(str(name), known - set(supplied))}")
    arguments: dict[str, Any] = {}
    for name, kind in groups.items():
        own = {key: value for key, value in values.items() if of_groups.get(key) == name}
        arguments[name] = kind(**check_arguments(path, own, kind))
        del parameters[name]
    for name, parameter in parameters.items():
        if name in supplied and values.get(name) is None:
            continue
        if name in values:
            hint = hints.get(name, Any)
            if hint is Any and _names_part(values[name]) and not is_own(target.__module__):
                hint = Component  # foreign code may lack type hints
            arguments[name] = check_value(f"{prefix}{name}", values[name], hint, metadata_of(target, name))
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(
                f"config key `{prefix}{name}` is missing and has no default. It must be "
                f"{describe(hints.get(name, Any))}. Add it."
            )
    return arguments


def check_value(path: str, value: Any, hint: Any, metadata: Mapping[str, Any] = types.MappingProxyType({})) -> Any:
    """Checks a value against a type hint, and converts it to a type that YAML lacks, such as a path or a tuple.

    Args:
        path: Config key of the value, for messages.
        value: Value in plain containers.
        hint: Type hint of the parameter.
        metadata: Metadata of the dataclass field (`metadata_of`).

    Raises:
        ConfigError: The value has another type.
    """
    if hint is Component:
        return check_component(path, value, metadata.get("supplied", ()), metadata.get("target"))
    if _names_part(value):
        return _check_nested(path, value, hint, metadata)
    matched, converted = _convert(path, value, hint)
    if not matched:
        quoting = " Text that looks like a number needs quotes." if isinstance(value, float) else ""
        raise ConfigError(f"`{path}` is {value!r}. It must be {describe(hint)}. Change the value.{quoting}")
    return converted


def fits(value: Any, hint: Any) -> bool:
    """Returns whether a scalar has the type of a hint without conversion to text."""
    matched, converted = _convert("", value, hint)
    return matched and not isinstance(converted, str | Path)


def _names_part(value: Any) -> bool:
    return isinstance(value, Mapping) and TARGET_KEY in value


def _check_nested(path: str, node: Mapping[str, Any], hint: Any, metadata: Mapping[str, Any]) -> Component:
    """Checks a nested component, which is allowed only for parameters whose hint is a class of components.

    Raises:
        ConfigError: The parameter takes a plain value, or a component of another class.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if Component in options:
        return check_component(path, node, metadata.get("supplied", ()), metadata.get("target"))
    kinds = tuple(
        option
        for option in options
        if isinstance(option, type) and option is not object and not issubclass(option, _VALUES)
    )
    wrong = ConfigError(
        f"`{path}` has the `{TARGET_KEY}` {node[TARGET_KEY]!r}, but it must be {describe(hint)}. Change the value."
    )
    if not kinds:
        raise wrong
    component = check_component(path, node)
    checkable = tuple(kind for kind in kinds if not getattr(kind, "_is_protocol", False))
    if inspect.isclass(component.target) and len(checkable) == len(kinds) and not issubclass(component.target, kinds):
        raise wrong
    return component


def _convert(path: str, value: Any, hint: Any) -> tuple[bool, Any]:
    """Returns True if the value fits the hint, and the converted value."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is inspect.Parameter.empty or isinstance(hint, typing.TypeVar):
        return True, value
    if origin is typing.Annotated:
        return _convert(path, value, arguments[0])
    if origin in (Union, types.UnionType):
        # An integer counts as text only if no other type matches.
        options = sorted(arguments, key=lambda option: option in (str, Path))
        return next((result for option in options if (result := _convert(path, value, option))[0]), (False, value))
    if origin is Literal:
        return value in arguments and not (isinstance(value, bool) and not any(a is value for a in arguments)), value
    if hint is None or hint is type(None):
        return value is None, value
    if is_dataclass(hint) and isinstance(hint, type):
        return isinstance(value, Mapping), hint(**check_arguments(path, value, hint)) if isinstance(
            value, Mapping
        ) else value
    if hint is bool:
        return isinstance(value, bool), value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST
        return fits, float(value) if fits else value
    if hint in (str, Path):
        # YAML parses 2024 as a number; str() restores its spelling.
        is_text = isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
        return is_text, hint(str(value)) if is_text else value
    if _is_kind(origin or hint, Mapping):
        return _convert_mapping(path, value, arguments)
    if hint is not str and _is_kind(origin or hint, Sequence):
        return _convert_sequence(path, value, origin or hint, arguments)
    if isinstance(hint, type):
        return isinstance(value, hint), value
    return True, value


def _is_kind(hint: Any, kind: type) -> bool:
    return isinstance(hint, type) and issubclass(hint, kind)


def _convert_mapping(path: str, value: Any, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    if not isinstance(value, Mapping):
        return False, value
    hint = arguments[1] if len(arguments) == 2 else Any
    return True, {name: check_value(f"{path}.{name}", item, hint) for name, item in value.items()}


def _convert_sequence(path: str, value: Any, kind: type, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    if not isinstance(value, list | tuple):
        return False, value
    item_hint = arguments[0] if arguments else Any
    items = [check_value(f"{path}[{index}]", item, item_hint) for index, item in enumerate(value)]
    return True, tuple(items) if issubclass(kind, tuple) else items


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Returns the type hints of the arguments of a class or function, and those of their flat groups, by name."""
    hints = _own_hints(target)
    for kind in flat_groups(target).values():
        hints |= typing.get_type_hints(kind)
    return hints


def flat_groups(target: Callable[..., Any]) -> dict[str, type]:
    """Returns the parameters whose type is a dataclass with `is_flat`, with that type.

    Their fields are keys beside those of the other parameters, and not keys of a nested group.
    """
    return {name: hint for name, hint in _own_hints(target).items() if getattr(hint, "is_flat", False) is True}


def _own_hints(target: Callable[..., Any]) -> dict[str, Any]:
    if is_dataclass(target) or not inspect.isclass(target):
        return typing.get_type_hints(target)
    return typing.get_type_hints(target.__init__)


def metadata_of(target: Callable[..., Any], name: str) -> Mapping[str, Any]:
    """Returns the metadata of a field of a dataclass; empty for other targets."""
    own = fields(target) if is_dataclass(target) else ()
    return next((field.metadata for field in own if field.name == name), types.MappingProxyType({}))


def describe(hint: Any) -> str:
    """Describes a type hint in a message, for example "a whole number or null"."""
    descriptions = {
        int: "a whole number",
        float: "a finite number",
        str: "text",
        bool: "true or false",
        type(None): "null",
        Path: "a path",
        Any: "a plain value",
        object: "a plain value",
    }
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in arguments)
    if hint is Component or is_dataclass(hint) or _is_kind(origin or hint, Mapping):
        return "a group of keys"
    if hint is not str and _is_kind(origin or hint, Sequence):
        return f"a list, each {describe(arguments[0])}" if arguments else "a list"
    return descriptions.get(hint, getattr(hint, "__name__", str(hint)))
