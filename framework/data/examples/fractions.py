"""Checks the shares of rows that become validation and test splits."""

from framework.errors import ConfigError, check_fraction


def check_fractions(validation: float, test: float) -> None:
    """Checks the shares of the records that become validation and test splits.

    Raises:
        ConfigError: A share is not in [0, 1), or nothing remains for training.
    """
    for name, value in (("validation_fraction", validation), ("test_fraction", test)):
        check_fraction(f"data.{name}", value)
    if validation + test >= 1:
        raise ConfigError(
            f"data.validation_fraction={validation} and data.test_fraction={test} leave nothing for training. Their "
            "sum must be below 1. Lower one of them."
        )
