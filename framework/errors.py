"""Errors that are shown to users.

A message names the value, the rule and the remedy. A message about bad data also names the file and the row.
"""

import pickle
from collections.abc import Iterable
from types import TracebackType

_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    pickle.UnpicklingError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Exceptions that Python and torch raise on unexpected content."""


class FrameworkError(Exception):
    """Base class of all errors that are shown to the user without a traceback.

    Attributes:
        rank: Rank on which the error happened, if other ranks raise it too; None: the rank that raises it.
    """

    exit_code = 2
    rank: int | None = None


class ConfigError(FrameworkError):
    """A config value, or a combination of values, that cannot be run."""


class DataError(FrameworkError):
    """A file, row, column or label that cannot be used."""


class CheckpointError(FrameworkError):
    """A checkpoint, run folder or published model that is missing, is damaged, or does not fit the request."""


class DistributedError(FrameworkError):
    """Processes that cannot work together, for example because their number does not fit or their configs differ."""


class SweepError(FrameworkError):
    """Jobs of a sweep that failed."""


class AuditError(FrameworkError):
    """An audit whose rate exceeds `fail_above`.

    Attributes:
        exit_code: 1, because the input was valid and the result was written.
    """

    exit_code = 1


class ResourceError(FrameworkError):
    """A machine that ran out of memory or killed a loader process. Another start may succeed.

    Attributes:
        exit_code: 1, because launchers do not restart after 2, the exit code of input errors.
    """

    exit_code = 1


def check_at_least(name: str, value: float, least: float, remedy: str = "Raise it.") -> None:
    """Checks the lower bound of a setting.

    Raises:
        ConfigError: The value is below the bound.
    """
    if not value >= least:
        raise ConfigError(f"{name} is {value}. It must be at least {least}. {remedy}")


def check_above_zero(name: str, value: float, example: float) -> None:
    """Checks that a setting is positive; the message suggests the example.

    Raises:
        ConfigError: The value is not positive.
    """
    if not value > 0:
        raise ConfigError(f"{name} is {value}. It must be above 0. Choose, for example, {example}.")


def check_fraction(name: str, value: float, remedy: str = "Choose, for example, 0.1.") -> None:
    """Checks that a setting is in [0, 1).

    Raises:
        ConfigError: The value is not in this interval.
    """
    if not 0 <= value < 1:
        raise ConfigError(f"{name} is {value}. It must be at least 0 and below 1. {remedy}")


def check_open_fraction(name: str, value: float, remedy: str) -> None:
    """Checks that a setting is above 0 and below 1.

    Raises:
        ConfigError: The value is not in this interval.
    """
    if not 0 < value < 1:
        raise ConfigError(f"{name} is {value}. It must be above 0 and below 1. {remedy}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Checks that a setting is one of some names.

    Raises:
        ConfigError: The value is another one.
    """
    known = list(choices)
    if value not in known:
        raise ConfigError(f"{name} is {value!r}, which is unknown. Choose one of {', '.join(known)}.")


def counted(number: int, noun: str) -> str:
    """Formats a count for a message, for example "1 document" or "2,000 documents"; the noun is regular, singular."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def reading_record(file: object, remedy: str, kind: type[FrameworkError] = CheckpointError) -> "_Reading":
    """Returns a context that turns any exception on a damaged or unreadable record into one error that names the file.

    A record is a file that a program wrote. It may come from anywhere: keys can be missing, and values can have any
    type. Errors of this module pass unchanged, and so does Ctrl-C.

    Args:
        file: File, or folder with several files.
        remedy: Remedy, a sentence without its full stop.
        kind: Class of the error.
    """
    return _Reading(file, remedy, kind)


class _Reading:
    """Context manager of `reading_record`."""

    def __init__(self, file: object, remedy: str, kind: type[FrameworkError]) -> None:
        self._file, self._remedy, self._kind = file, remedy, kind

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Rust libraries raise plain Exception, and a panic does not derive from Exception.
        if kind is None or not (issubclass(kind, _DAMAGE) or kind is Exception or kind.__name__ == "PanicException"):
            return
        if isinstance(error, PermissionError):
            name = error.filename or self._file
            raise self._kind(
                f"{name} cannot be read (permission denied). The user of this process must be able to read it. Change "
                "its permissions, or those of its folders."
            ) from error
        reason = " ".join(str(error).split()) or "no reason given"
        raise self._kind(f"{self._file} is damaged ({kind.__name__}: {reason}). {self._remedy}.") from error
