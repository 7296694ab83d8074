"""The errors a user can meet. A message names the value, the rule and the remedy; with bad data also file and row."""

from collections.abc import Iterator
from contextlib import contextmanager


class FrameworkError(Exception):
    """Root of all errors that are shown to the user without a traceback.

    Attributes:
        rank: The rank on which it happened, where others raise it too; None: the one that raises it.
    """

    exit_code = 2
    rank: int | None = None


class ConfigError(FrameworkError):
    """A config value, or a combination of values, that cannot be run."""


class DataError(FrameworkError):
    """A file, row, column or label that cannot be used."""


class CheckpointError(FrameworkError):
    """A checkpoint, run folder or published weights that do not fit what was asked for."""


class DistributedError(FrameworkError):
    """Processes that cannot work together: sizes, hosts, or ranks that disagree."""


class SweepError(FrameworkError):
    """Jobs of a sweep that failed."""


class ResourceError(FrameworkError):
    """Memory, or a process of the loader, that the machine took away. Another start may succeed.

    Attributes:
        exit_code: Not that of an error of the input, which launchers do not start again.
    """

    exit_code = 1


@contextmanager
def reading_record(file: object, remedy: str) -> Iterator[None]:
    """Reports whatever a damaged record raises while it is read as one error that names the file.

    A record is a file that a program wrote and that may come from anywhere: its keys can be missing, its values can be
    of any type. Errors of this module pass unchanged.

    Args:
        file: The file, or the folder of several.
        remedy: A sentence without its full stop.

    Raises:
        CheckpointError: The record is damaged.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise CheckpointError(f"{file} is damaged ({type(error).__name__}: {reason}). {remedy}.") from error
