"""The errors a user can meet. A message names the value, the rule and the remedy; with bad data also file and row."""

import pickle
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
    """The machine ran out of memory or killed a loader process. Another start may succeed.

    Attributes:
        exit_code: 1, because launchers do not restart after 2, the code of input errors.
    """

    exit_code = 1


def counted(number: int, noun: str) -> str:
    """Formats a count for a message, for example "1 document" or "2,000 documents"; the noun is regular, singular."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def reading_record(file: object, remedy: str, kind: type[FrameworkError] = CheckpointError) -> "_Reading":
    """Returns a context that turns any exception on a damaged record into one error that names the file.

    A record is a file that a program wrote. It may come from anywhere: keys can be missing, and values can have any
    type. Errors of this module pass unchanged, and so does Ctrl-C.

    Args:
        file: File, or folder of several files.
        remedy: Remedy as a sentence without its full stop.
        kind: Class of the error.
    """
    return _Reading(file, remedy, kind)


class _Reading:
    """The context of `reading_record`."""

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
        reason = " ".join(str(error).split()) or "no reason given"
        raise self._kind(f"{self._file} is damaged ({kind.__name__}: {reason}). {self._remedy}.") from error
