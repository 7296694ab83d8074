"""Turns the body of a command into two doors: the command line, and `run` for Python. Hydra composes its config."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.plugin import Plugin
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from framework.config.group_choices import with_named_choices
from framework.config.guard import guard, until_the_reader_leaves
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
"""Singletons that hold what Hydra knows about the config of this process."""


class Command(Generic[T]):
    """A command: called without arguments it reads the command line, and `run` serves Python.

    Args:
        body: Function of the composed config.
        config_name: Primary config, a file directly under conf/.
        plugins: Launchers and sweepers that Hydra does not find by itself.
    """

    def __init__(self, body: Callable[[DictConfig], T], config_name: str, plugins: Sequence[type[Plugin]] = ()) -> None:
        self._body = body
        self._config_name = config_name
        self._plugins = plugins
        functools.update_wrapper(self, body)

    def __call__(self) -> None:
        """Runs the command line of this process. Errors end the process as `framework.config.guard` says."""
        # Without it Hydra prints errors of composition itself, shortened, and exits with 1 for each of them.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        self._prepare()
        sys.argv[1:] = with_named_choices(with_quotes(sys.argv[1:]))

        @functools.wraps(self._body)
        def guarded(config: DictConfig) -> None:
            # Hydra would print "Error executing job" before any error that leaves its task function.
            guard(lambda: self._translated(lambda: self._body(config)))

        app = hydra.main(version_base=_HYDRA_VERSION, config_path=str(conf_folder()), config_name=self._config_name)
        guard(lambda: until_the_reader_leaves(lambda: self._translated(app(guarded))))

    def run(self, overrides: Sequence[str] = ()) -> T:
        """Runs the command in this process and returns its result. Call it again to run it again.

        Args:
            overrides: Words of the command line, such as `"experiment=finetune_demo"`. Relative paths start at the
                current folder. Options and sweeps belong to the command line.

        Raises:
            FrameworkError: The command failed; the command line would have ended with this message.
        """
        for word in overrides:
            if word.startswith("-"):
                raise ConfigError(
                    f"`{word}` is an option of the command line. From Python a command takes only overrides KEY=VALUE. "
                    "Leave it out, or start a shell command."
                )
        self._prepare()
        with _own_hydra_state():
            return self._translated(lambda: self._body(self._compose(overrides)))

    def _prepare(self) -> None:
        REPORT.close()
        register_resolvers()
        use_seams()
        for plugin in self._plugins:
            register_plugin(plugin)

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        words = with_named_choices(with_quotes(overrides))
        with hydra.initialize_config_dir(str(conf_folder()), version_base=_HYDRA_VERSION):
            config = hydra.compose(self._config_name, words, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with read_write(config), open_dict(config):
            del config["hydra"]
        return config

    @staticmethod
    def _translated(action: Callable[[], T]) -> T:
        """Runs an action; errors of Hydra and OmegaConf become a FrameworkError."""
        try:
            return action()
        except (HydraException, OmegaConfBaseException) as error:
            raise as_framework_error(error) from error


def command(
    config_name: str, plugins: Sequence[type[Plugin]] = ()
) -> Callable[[Callable[[DictConfig], T]], Command[T]]:
    """Returns a decorator that turns a function of a composed config into a `Command`; arguments as there."""
    return lambda body: Command(body, config_name, plugins)


@contextmanager
def _own_hydra_state() -> Iterator[None]:
    """Gives Hydra a fresh state inside the block, and the caller's state afterwards."""
    instances = Singleton._instances
    kept: dict[type, Singleton] = {kind: instances.pop(kind) for kind in _HYDRA_STATE if kind in instances}
    try:
        yield
    finally:
        for kind in _HYDRA_STATE:
            instances.pop(kind, None)
        instances.update(kept)


def as_framework_error(error: BaseException) -> FrameworkError:
    """The error in our words: what caused it where that is ours, else one line of what Hydra or OmegaConf said."""
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
            f"`{error.override}` on the command line has no value. An override is written KEY=VALUE. Add a value, or "
            "quote a value that holds spaces."
        )
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"the override `{error.override}` cannot be read ({str(error).splitlines()[0]}); quote values with "
            "special signs."
        )
    return ConfigError(_one_line(str(error)))


def _one_line(text: str) -> str:
    """Hydra's answer without its search path; options that it lists one a line are joined by commas."""
    head, separator, options = text.split("Config search path:")[0].partition("Available options")
    label, _, names = options.partition(":")
    told = " ".join(head.split())
    return f"{told}. Available options{label}: {', '.join(names.split())}." if separator else told


def _missing(key: str) -> ConfigError:
    """What to say of a key without a value: a group's options, where it is a group."""
    if (conf_folder() / key).is_dir():
        ways = " or ".join(f"`{group}=` one of {', '.join(_options(group))}" for group in ("experiment", key))
        return ConfigError(f"no {key} is chosen; give {ways}.")
    return ConfigError(f"config key `{key}` has no value yet; give it one with `{key}=VALUE`.")


def _options(group: str) -> list[str]:
    names = (file.stem for file in (conf_folder() / group).glob("*.yaml"))
    return sorted(name for name in names if not name.startswith(BASE_PREFIX))


def _unknown_key(error: OmegaConfBaseException) -> ConfigError:
    """OmegaConf's answer to a key that no config has, with the closest one that is there."""
    parent = error.parent_node
    known = {str(name) for name in parent} if isinstance(parent, DictConfig) else set()
    return ConfigError(f"unknown config key `{error.full_key}`; {suggestion(str(error.key), known)}")


def plain(config: DictConfig, schema: type | None = None, overrides: Sequence[str] | None = None) -> dict[str, object]:
    """Returns the config as plain containers, interpolations resolved, and text as it was typed.

    Args:
        config: The composed config; keys of text take their spelling.
        schema: The dataclass of the command's settings; None: text that looks like a number becomes one.
        overrides: The command line; None: that of this process.

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
