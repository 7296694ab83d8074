"""Settings of differentially private training, and the guarantee of a run with its noise."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from framework.errors import ConfigError, check_at_least
from framework.privacy.accountant import epsilon_of, solve_sigma

ACCOUNTANT = "RDP (Mironov, Talwar, Zhang 2019)"
SAMPLING = "Poisson"
NOT_COVERED = (
    "starting weights, tokenizer, and names of labels and groups",
    "rows of validation and test, and all metrics on them",
    "the number of training rows and units, their counts by label and length in the record of the data",
    "numbers of rows and tokens and times of steps, and the share of clipped gradients",
    "other runs on the same rows, such as those of a search for hyperparameters",
    "rounding of floating-point noise",
)
"""Facts about the training rows that the guarantee does not protect, for any unit."""
_BY_UNIT = {
    "row": ("a person with several rows",),
    "sequence": ("a document or person with several sequences", "duplicates that were removed from the token store"),
    "document": ("a person with several documents", "duplicates that were removed from the token store"),
}
"""Further facts for units that are not values of a column."""


@dataclass(frozen=True)
class PrivacySettings:
    """Settings of DP-SGD (Abadi et al. 2016, arXiv:1607.00133).

    Attributes:
        epsilon: Epsilon of the whole run, which determines the noise.
        delta: Delta of the whole run.
        clip: Largest gradient norm of a unit; larger gradients are scaled down to it.
        unit: Protected unit: "row", a row of the training table, or in pre-training a sequence; "document", in
            pre-training all sequences of a document.
        unit_column: Column of the training table whose values are the units, such as a user; None: `unit`.
        max_rows_per_unit: Most rows (in pre-training: sequences) of a unit in a step; None: all of them.
    """

    epsilon: float
    delta: float
    clip: float
    unit: Literal["row", "document"] = "row"
    unit_column: str | None = None
    max_rows_per_unit: int | None = None

    def __post_init__(self) -> None:
        if self.unit_column is not None and self.unit != "row":
            raise ConfigError(
                f"`privacy.unit_column` is {self.unit_column}, and `privacy.unit` is {self.unit}. Only one of them can "
                "name the unit. Set privacy.unit=row, or privacy.unit_column=null."
            )
        if self.max_rows_per_unit is not None:
            check_at_least("privacy.max_rows_per_unit", self.max_rows_per_unit, 1, "Use null for all rows of a unit.")
            if self.unit_column is None and self.unit == "row":
                raise ConfigError(
                    f"`privacy.max_rows_per_unit` is {self.max_rows_per_unit}, but the unit is one row. It bounds the "
                    "rows of a larger unit. Set privacy.unit_column, or privacy.max_rows_per_unit=null."
                )
        if not 0 < self.epsilon <= 100:
            raise ConfigError(
                f"`privacy.epsilon` is {self.epsilon}. It must be greater than 0 and at most 100. A usual value is 8."
            )
        if not 0 < self.delta < 1:
            raise ConfigError(
                f"`privacy.delta` is {self.delta}. It must be greater than 0 and less than 1. Choose less than 1 / the "
                "number of training rows, for example 1.0e-5."
            )
        if not self.clip > 0:
            raise ConfigError(f"`privacy.clip` is {self.clip}. It must be greater than 0. A usual value is 1.0.")


@dataclass(frozen=True)
class Guarantee:
    """Guarantee of a run.

    Attributes:
        epsilon: Requested epsilon of the whole run.
        delta: Delta of the whole run.
        unit: Protected unit: "row", "sequence", "document", or the name of a column whose values are the units.
        clip: Largest gradient norm of a unit.
        sigma: Noise multiplier: standard deviation of the noise on the sum of gradients / clip.
        expected_batch: Expected number of units in a step, by which the sum is divided.
        sampling_rate: Probability that a unit takes part in a step.
        steps: Steps of the whole run.
    """

    epsilon: float
    delta: float
    unit: str
    clip: float
    sigma: float
    expected_batch: int
    sampling_rate: float
    steps: int

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise on each element of a step's gradient."""
        return self.sigma * self.clip / self.expected_batch

    def spent(self, steps: int) -> float:
        """Returns the epsilon of the first steps of the run."""
        return epsilon_of(self.sigma, self.sampling_rate, steps, self.delta) if steps else 0.0

    def as_record(self) -> dict[str, Any]:
        """Returns the guarantee as JSON values."""
        not_covered = [*NOT_COVERED, *_BY_UNIT.get(self.unit, ())]
        return {**asdict(self), "accountant": ACCOUNTANT, "sampling": SAMPLING, "not_covered": not_covered}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Guarantee":
        """Returns the guarantee of a record."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})


def solve_guarantee(settings: PrivacySettings, unit: str, num_units: int, expected_batch: int, steps: int) -> Guarantee:
    """Computes the noise that the settings need.

    Args:
        settings: Settings of the run.
        unit: Name of the protected unit, as in `Guarantee`.
        num_units: Number of units of the training split.
        expected_batch: Expected number of units in a step.
        steps: Steps of the whole run.

    Raises:
        ConfigError: The expected batch exceeds the split, or delta is too large for its size.
    """
    if expected_batch > num_units:
        raise ConfigError(
            f"`trainer.global_batch_size` is {expected_batch}, but the training split has {num_units:,} units of "
            f"privacy ({unit}). With privacy it is the expected number of a random sample. Choose at most the size of "
            "the split."
        )
    if settings.delta >= 1 / num_units:
        raise ConfigError(
            f"`privacy.delta` is {settings.delta}, but the training split has {num_units:,} units of privacy ({unit}). "
            "A run that publishes one of them would satisfy such a delta. Choose less than "
            f"{1 / num_units:.1e}."
        )
    rate = expected_batch / num_units
    sigma = solve_sigma(settings.epsilon, settings.delta, rate, steps)
    return Guarantee(settings.epsilon, settings.delta, unit, settings.clip, sigma, expected_batch, rate, steps)
