"""Parses choices of config groups on a command line: `logger=null` means `none`, and `data=5` names an option `5`."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from framework.config.resolvers import conf_folder

_NONE = "none"


def with_named_choices(arguments: Sequence[str]) -> list[str]:
    """Rewrites the choice of each config group as text, the only type that Hydra accepts.

    Hydra parses `null`, `5` and `true` as YAML values and raises a ValueError. `null` becomes `none` in groups that
    have this option. Every other value becomes a name, so that Hydra reports it with the options of the group.

    Args:
        arguments: Command line without the program name.
    """
    folders = [conf_folder(), *_config_folders(arguments)]
    parser = OverridesParser.create()
    return [_named(argument, parser, folders) for argument in arguments]


def _config_folders(arguments: Sequence[str]) -> list[Path]:
    """Returns the folders that `--config-dir` adds to the search path."""
    flags = ("--config-dir", "-cd")
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith(tuple(f"{f}=" for f in flags))]
    given += [value for flag, value in pairwise(arguments) if flag in flags]
    return [Path(folder) for folder in given]


def _named(argument: str, parser: OverridesParser, folders: Sequence[Path]) -> str:
    override = _parsed(argument, parser)
    if override is None or override.is_delete() or override.is_sweep_override():
        return argument
    group, value = override.key_or_group, override.value()
    names = value if isinstance(value, list) else [value]
    # A mapping is not a choice: `task={top_k: 2}` changes keys of the group.
    if "." in group or all(isinstance(name, str | dict) for name in names) or not _is_group(group, folders):
        return argument
    has_none = any((folder / group / f"{_NONE}.yaml").is_file() for folder in folders)
    key, _, text = argument.partition("=")
    name = _NONE if value is None and has_none else text.strip()
    return f"{key}='{name}'" if "'" not in name else argument


def _parsed(argument: str, parser: OverridesParser) -> Override | None:
    if argument.startswith("-") or "=" not in argument:
        return None
    try:
        return parser.parse_override(argument)
    except HydraException:
        return None  # Hydra reports it


def _is_group(group: str, folders: Sequence[Path]) -> bool:
    return group.split("/")[0] == "hydra" or any((folder / group).is_dir() for folder in folders)
