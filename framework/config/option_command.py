"""Commands with options instead of a config. They import neither Hydra nor torch, so that they start quickly."""

import argparse
import functools
from collections.abc import Callable, Sequence
from typing import Generic, NoReturn, TypeVar

from typing_extensions import override

from framework.config.guard import guard, ignore_closed_pipe
from framework.errors import ConfigError

T = TypeVar("T")

Body = Callable[[argparse.Namespace], T]


class OptionParser(argparse.ArgumentParser):
    """Option parser with help in the format of the other commands. It reports errors as ConfigError.

    Args:
        usage: Syntax of the command line, such as `python -m framework.status [RUN ...]`.
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
    """Command with options. Calling it runs the command line of the process; `run` is for Python.

    Args:
        body: Function of the parsed options.
        options: Builds the parser of the options.
    """

    def __init__(self, body: Body[T], options: Callable[[], OptionParser]) -> None:
        self._body = body
        self._options = options
        functools.update_wrapper(self, body)

    def __call__(self) -> None:
        """Runs the command line of this process. `framework.config.guard` describes how errors end the process."""
        guard(lambda: ignore_closed_pipe(lambda: self._body(self._options().parse_args())))

    def run(self, arguments: Sequence[str] = ()) -> T:
        """Runs the command in this process and returns its result.

        Args:
            arguments: Arguments of the command line.

        Raises:
            FrameworkError: The command failed. The command line would print the same message.
        """
        return self._body(self._options().parse_args(list(arguments)))


def option_command(options: Callable[[], OptionParser]) -> Callable[[Body[T]], OptionCommand[T]]:
    """Returns a decorator that turns a function of parsed options into an `OptionCommand`."""
    return lambda body: OptionCommand(body, options)
