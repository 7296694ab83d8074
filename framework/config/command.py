"""Commands with a config that Hydra composes, for the command line and, with `run`, for Python."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, NoReturn, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.plugin import Plugin
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from framework.config.group_choices import with_named_choices
from framework.config.guard import guard, ignore_closed_pipe
from framework.config.hydra_seams import BASE_PREFIX, use_seams
from framework.config.nodes import suggestion
from framework.config.plugins import register_plugin
from framework.config.quoting import with_quotes
from framework.config.resolvers import conf_folder, register_resolvers
from framework.config.spelling import keep_spelling
from framework.distributed.processes.failure_report import REPORT
from framework.errors import ConfigError, FrameworkError

T = TypeVar("T")

_HYDRA_VERSION = "1.3"
_HYDRA_STATE = (GlobalHydra, HydraConfig, VersionBase)
"""Singletons that hold Hydra's state about the config of this process."""
_OWN_SOURCES = ("hydra", "main", "schema")
"""Providers of config files that every command has. Others are folders that the user added."""


def start(module: str) -> NoReturn:
    """Runs the command line of this process with the command of a module, and ends the process.

    The module is imported only when a composed config is to run or to be swept, because its imports take seconds.
    `--help`, `--cfg` and most errors in the config need none of them. `framework.config.guard` describes how errors end
    the process.

    Args:
        module: Module of the command, for example "framework.train". Its command and its config have the same name.
    """
    name = module.rpartition(".")[2]

    def load() -> Command[object]:
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]

    def register_plugins() -> None:
        for plugin in load().plugins:
            register_plugin(plugin)

    def task(config: DictConfig) -> None:
        # Hydra prints "Error executing job" before each error that its task function raises.
        guard(lambda: _translated(lambda: load().body(config)))

    task.__module__ = module  # Hydra names the job after it
    # Without this variable, Hydra prints shortened composition errors itself and exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _prepare(register_plugins)
    sys.argv[1:] = with_named_choices(with_quotes(sys.argv[1:]))
    app = hydra.main(version_base=_HYDRA_VERSION, config_path=str(conf_folder()), config_name=name)
    guard(lambda: ignore_closed_pipe(lambda: _translated(app(task))))
    sys.exit()


class Command(Generic[T]):
    """Command with a composed config. `start` runs it from the command line; `run` is for Python.

    Args:
        body: Function of the composed config.
        config_name: Name of the primary config, a file directly in conf/.
        plugins: Launchers and sweepers that Hydra does not discover.
    """

    def __init__(self, body: Callable[[DictConfig], T], config_name: str, plugins: Sequence[type[Plugin]] = ()) -> None:
        self.body = body
        self.plugins = plugins
        self._config_name = config_name
        self.__doc__ = body.__doc__

    def run(self, overrides: Sequence[str] = ()) -> T:
        """Runs the command in this process and returns its result. It may be called repeatedly.

        Args:
            overrides: Arguments such as `"experiment=finetune_demo"`. Relative paths start at the current folder.
                Options and sweeps are supported only on the command line.

        Raises:
            FrameworkError: The command failed. The command line would print the same message.
        """
        for argument in overrides:
            if argument.startswith("-"):
                raise ConfigError(
                    f"`{argument}` is an option of the command line. From Python, a command accepts only overrides "
                    "KEY=VALUE. Remove the option, or start the command in a shell."
                )
        _prepare()
        with _own_hydra_state():
            return _translated(lambda: self.body(self._compose(overrides)))

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        return _compose(self._config_name, with_named_choices(with_quotes(overrides)))


def recompose(config_name: str, changes: Sequence[str]) -> DictConfig:
    """Composes the config of the running command again with changes. Its own config stays as it is.

    Args:
        config_name: Name of the primary config.
        changes: Overrides KEY=VALUE, each of which replaces those of the same key.

    Raises:
        ConfigError: The changed command line is wrong.
    """
    current = HydraConfig.get()
    added = [each for each in current.runtime.config_sources if each.provider not in _OWN_SOURCES]
    folders = ",".join(f"{each.schema}://{each.path}" for each in added)
    path = [f"hydra.searchpath=[{folders}]"] if folders else []

    def compose() -> DictConfig:
        arguments, parser = with_named_choices(with_quotes(changes)), OverridesParser.create()
        changed = {each.key_or_group for each in parser.parse_overrides(arguments)}
        kept = [each for each in current.overrides.task if parser.parse_override(each).key_or_group not in changed]
        return _compose(config_name, [*path, *kept, *arguments])

    with _own_hydra_state():
        return _translated(compose)


def _compose(config_name: str, arguments: list[str]) -> DictConfig:
    """Composes a config, and makes it Hydra's config of this process."""
    with hydra.initialize_config_dir(str(conf_folder()), version_base=_HYDRA_VERSION):
        config = hydra.compose(config_name, arguments, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with read_write(config), open_dict(config):
        del config["hydra"]
    return config


def _prepare(register_plugins: Callable[[], None] = lambda: None) -> None:
    REPORT.close()
    register_resolvers()
    use_seams(register_plugins)


def _translated(action: Callable[[], T]) -> T:
    """Runs an action and converts errors of Hydra and OmegaConf to a FrameworkError."""
    try:
        return action()
    except (HydraException, OmegaConfBaseException) as error:
        raise as_framework_error(error) from error


def command(
    config_name: str, plugins: Sequence[type[Plugin]] = ()
) -> Callable[[Callable[[DictConfig], T]], Command[T]]:
    """Returns a decorator that turns a function of a composed config into a `Command`.

    Args:
        config_name: See `Command`.
        plugins: See `Command`.
    """
    return lambda body: Command(body, config_name, plugins)


@contextmanager
def _own_hydra_state() -> Iterator[None]:
    """Gives Hydra a fresh state inside the block and restores the caller's state afterwards."""
    instances = Singleton._instances
    kept: dict[type, Singleton] = {kind: instances.pop(kind) for kind in _HYDRA_STATE if kind in instances}
    try:
        yield
    finally:
        for kind in _HYDRA_STATE:
            instances.pop(kind, None)
        instances.update(kept)


def as_framework_error(error: BaseException) -> FrameworkError:
    """Converts an error of Hydra or OmegaConf: returns the FrameworkError that caused it, else its message in one line.

    Args:
        error: Error with its chain of causes.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, FrameworkError):
            return link
        if isinstance(link, OmegaConfBaseException) and isinstance(link.full_key, str) and "not in struct" in str(link):
            return _unknown_key(link)
        link = link.__cause__ or link.__context__
    if isinstance(error, MissingMandatoryValue):
        return _missing(str(error.full_key))
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return ConfigError(
            f"`{error.override}` on the command line has no value. An override has the form KEY=VALUE. Add a value, or "
            "quote a value that contains spaces."
        )
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"the override `{error.override}` cannot be parsed ({str(error).splitlines()[0]}). Values with special "
            "characters need quotes. Quote the value."
        )
    return ConfigError(_one_line(str(error)))


def _one_line(text: str) -> str:
    """Returns a message of Hydra without the search path, its list of options joined by commas."""
    head, separator, options = text.split("Config search path:")[0].partition("Available options")
    label, _, names = options.partition(":")
    message = " ".join(head.split())
    return f"{message}. Available options{label}: {', '.join(names.split())}." if separator else message


def _missing(key: str) -> ConfigError:
    """Returns the error for a key without a value; for a config group it lists the options."""
    if (conf_folder() / key).is_dir():
        ways = ", or ".join(f"`{group}=NAME` with one of {', '.join(_options(group))}" for group in ("experiment", key))
        return ConfigError(f"no {key} is chosen. This command requires one. Add {ways}.")
    return ConfigError(f"config key `{key}` has no value. This command requires one. Add `{key}=VALUE`.")


def _options(group: str) -> list[str]:
    names = (file.stem for file in (conf_folder() / group).glob("*.yaml"))
    return sorted(name for name in names if not name.startswith(BASE_PREFIX))


def _unknown_key(error: OmegaConfBaseException) -> ConfigError:
    """Returns the error for an unknown key, with the closest valid key."""
    parent = error.parent_node
    known = {str(name) for name in parent} if isinstance(parent, DictConfig) else set()
    return ConfigError(f"unknown config key `{error.full_key}`. {suggestion(str(error.key), known)}")


def resolve_config(
    config: DictConfig, schema: type | None = None, overrides: Sequence[str] | None = None
) -> dict[str, object]:
    """Returns a config in plain containers, with interpolations resolved and text values as they were typed.

    Args:
        config: Composed config. Its text values are set to their spelling in `overrides`.
        schema: Dataclass of the command's settings; None: text that looks like a number becomes a number.
        overrides: Command line; None: the command line of this process.

    Raises:
        ConfigError: An interpolation cannot be resolved, or a mandatory value ("???") is missing.
    """
    if overrides is None:
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    if schema is not None:
        keep_spelling(config, schema, overrides)
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise as_framework_error(error) from error
    return {str(name): value for name, value in dict(resolved).items()}  # type: ignore[arg-type]
