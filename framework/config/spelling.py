"""Restores the spelling of text values that Hydra parsed as numbers or booleans.

`run.id=1234e56` is the name 1234e56, not the number 1.234e+59.
"""

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from framework.config.nodes import TARGET_KEY, Component, fits, hints_of, import_target, metadata_of


def keep_spelling(config: DictConfig, schema: type, overrides: Sequence[str]) -> None:
    """Replaces parsed values of the command line by their spelling if their key takes text, but not the parsed type.

    The config is changed in place.

    Args:
        config: Composed config.
        schema: Dataclass of the command's settings.
        overrides: Command line as it was typed.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if override.is_delete() or override.is_sweep_override() or "/" in key:
            continue
        value = override.value()
        # A later override may have replaced the value.
        if not isinstance(value, bool | int | float) or repr(OmegaConf.select(config, key)) != repr(value):
            continue
        hint = hint_at(schema, config, key.split("."))
        if takes_text(hint) and not fits(value, hint):
            with open_dict(config):
                OmegaConf.update(config, key, override.get_value_string().strip(), merge=False)


def takes_text(hint: Any) -> bool:
    """Returns True if text is among the types of a hint."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return str in options or Path in options


def hint_at(target: Any, config: Any, names: Sequence[str]) -> Any:
    """Returns the type hint of a key; Any if it is unknown.

    Args:
        target: Dataclass or component class whose values are in the config.
        config: Config that contains the key.
        names: Parts of the dotted key.
    """
    name, rest = names[0], names[1:]
    hint = hints_of(target).get(name, Any)
    node = config.get(name) if isinstance(config, Mapping | DictConfig) else None
    if not rest:
        return hint
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        origin = get_origin(option)
        if isinstance(origin, type) and issubclass(origin, Mapping) and len(get_args(option)) == 2:
            item = get_args(option)[1]
            return item if len(rest) == 1 else _inside(item, {}, node.get(rest[0]) if node else None, rest[1:])
    kind = next((option for option in options if isinstance(option, type) and option is not type(None)), None)
    return _inside(kind, metadata_of(target, name), node, rest)


def _inside(kind: Any, metadata: Mapping[str, Any], node: Any, names: Sequence[str]) -> Any:
    """Returns the hint of a key inside a component or a dataclass."""
    if kind is Component or (isinstance(node, Mapping | DictConfig) and TARGET_KEY in node):
        target = metadata.get("target")
        if target is None and isinstance(node, Mapping | DictConfig) and TARGET_KEY in node:
            target = import_target("", node[TARGET_KEY])
        return Any if target is None else hint_at(target, node, names)
    return hint_at(kind, node, names) if isinstance(kind, type) and typing.get_type_hints(kind) else Any
