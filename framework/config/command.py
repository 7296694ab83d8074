"""Wraps the body of every command: Hydra composes its config, and every error ends as one message and an exit code."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.plugin import Plugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from framework.config.group_choices import with_named_choices
from framework.config.hydra_seams import use_seams
from framework.config.nodes import suggestion
from framework.config.plugins import register_plugin
from framework.config.quoting import with_quotes
from framework.config.resolvers import conf_folder, register_resolvers
from framework.config.spelling import keep_spelling
from framework.distributed.processes.failure_report import REPORT, report_once
from framework.errors import ConfigError, FrameworkError

UNEXPECTED = 1
"""Exit code after an error that is caused by Cloze or the machine rather than the input."""

INTERRUPTED = 130
"""Exit code after Ctrl-C outside of training, as shells write it: 128 + SIGINT."""


def command(
    config_name: str, plugins: Sequence[type[Plugin]] = ()
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turns a function of a composed config into a command.

    Args:
        config_name: The primary config, a file directly under conf/.
        plugins: Launchers and sweepers that Hydra does not find by itself.

    Returns:
        A decorator. The decorated function reads the command line. After an error it exits with the error's own code:
        2 for a FrameworkError and for errors of composition, 1 for an error that Cloze did not expect, 130 after
        Ctrl-C.
    """

    def decorate(body: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(body)
        def guarded(config: DictConfig) -> None:
            # Hydra would print "Error executing job" before any error that leaves its task function.
            guard(lambda: body(config))

        @functools.wraps(body)
        def main() -> None:
            # Without it Hydra prints errors of composition itself, shortened, and exits with 1 for each of them.
            os.environ["HYDRA_FULL_ERROR"] = "1"
            REPORT.close()
            register_resolvers()
            use_seams()
            for plugin in plugins:
                register_plugin(plugin)
            sys.argv[1:] = with_named_choices(with_quotes(sys.argv[1:]))
            app = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=config_name)(guarded)
            guard(lambda: _until_the_reader_leaves(app))

        return main

    return decorate


def guard(body: Callable[[], object]) -> None:
    """Runs the body of a command. Every error but SystemExit ends the process with one message and an exit code."""
    try:
        body()
    except Exception as error:  # noqa: BLE001  no command may end in a traceback
        leave(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)


def _until_the_reader_leaves(body: Callable[[], object]) -> None:
    """Runs a body whose output may go to a pipe that closes early, as in `--help | head`."""
    try:
        body()
    except BrokenPipeError:
        pass
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            # The interpreter flushes once more at its end, and would report the same error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def leave(error: Exception) -> NoReturn:
    """Reports the first failure once, from one rank, and ends the process with the exit code of its own error.

    The traceback of an error that Cloze did not expect goes to the log of the run, or to a file of its own.
    """
    if isinstance(error, (FrameworkError, HydraException, OmegaConfBaseException)):
        shown = as_framework_error(error)
        report_once(shown)
        sys.exit(shown.exit_code)
    REPORT.keep_traceback(error)
    report_once(error)
    sys.exit(UNEXPECTED)


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
    return sorted(file.stem for file in (conf_folder() / group).glob("*.yaml"))


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
