"""The errors a user can meet. A message names the value, the rule and the remedy; with bad data also file and row."""


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
