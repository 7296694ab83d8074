"""Commands with options instead of a config: those that must start quickly, without Hydra and torch."""

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Generic, NoReturn, TypeVar

from typing_extensions import override

from framework.config.guard import guard, until_the_reader_leaves
from framework.errors import ConfigError

T = TypeVar("T")

Body = Callable[[argparse.Namespace], T]


class OptionParser(argparse.ArgumentParser):
    """A parser whose help looks like that of the other commands, and whose errors are a ConfigError.

    Args:
        usage: The command line, such as `python -m framework.status [RUN ...]`.
        about: Purpose of the command in one line.
    """

    def __init__(self, usage: str, about: str) -> None:
        super().__init__(usage.split(" [")[0], usage=usage, description=about, allow_abbrev=False)
        self._positionals.title = "== Arguments =="
        self._optionals.title = "== Options =="

    @override
    def format_help(self) -> str:
        rest = super().format_help().partition("\n\n== ")[2]
        return f"{self.usage}: {self.description}\n\n== {rest}".replace(" ==:\n", " ==\n\n")

    @override
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. The command line is `{self.usage}`. `--help` lists all options.")


class OptionCommand(Generic[T]):
    """A command: called without arguments it reads the command line, and `run` serves Python.

    Args:
        body: Function of the parsed options.
        options: Builds the parser of the options.
    """

    def __init__(self, body: Body[T], options: Callable[[], OptionParser]) -> None:
        self._body = body
        self._options = options
        functools.update_wrapper(self, body)

    def __call__(self) -> None:
        """Runs the command line of this process. Errors end the process as `framework.config.guard` says."""
        guard(lambda: until_the_reader_leaves(lambda: self._body(self._options().parse_args())))

    def run(self, arguments: Sequence[str] = ()) -> T:
        """Runs the command in this process and returns its result.

        Args:
            arguments: Words of the command line.

        Raises:
            FrameworkError: The command failed; the command line would have ended with this message.
        """
        return self._body(self._options().parse_args(list(arguments)))


def option_command(options: Callable[[], OptionParser]) -> Callable[[Body[T]], OptionCommand[T]]:
    """Returns a decorator that turns a function of parsed options into an `OptionCommand`."""
    return lambda body: OptionCommand(body, options)
