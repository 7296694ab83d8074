"""Settings of differentially private training, and the guarantee of a run with its noise."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from framework.errors import ConfigError
from framework.privacy.accountant import epsilon_of, solve_sigma

ACCOUNTANT = "RDP (Mironov, Talwar, Zhang 2019)"
SAMPLING = "Poisson"
NOT_COVERED = (
    "starting weights, tokenizer, and names of labels and groups",
    "rows of validation and test, and all metrics on them",
    "the number of training rows, their counts by label and length in the record of the data",
    "numbers of rows and tokens and times of steps, and the share of clipped gradients",
    "other runs on the same rows, such as those of a search for hyperparameters",
    "a person with several rows",
    "rounding of floating-point noise",
)
"""Facts about the training rows that the guarantee does not protect."""


@dataclass(frozen=True)
class PrivacySettings:
    """Settings of DP-SGD (Abadi et al. 2016, arXiv:1607.00133).

    Attributes:
        epsilon: Epsilon of the whole run, which determines the noise.
        delta: Delta of the whole run.
        clip: Largest gradient norm of a unit; larger gradients are scaled down to it.
        unit: Protected unit: "row", a row of the training table.
    """

    epsilon: float
    delta: float
    clip: float
    unit: Literal["row"] = "row"

    def __post_init__(self) -> None:
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
        unit: Protected unit.
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
        return {**asdict(self), "accountant": ACCOUNTANT, "sampling": SAMPLING, "not_covered": list(NOT_COVERED)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Guarantee":
        """Returns the guarantee of a record."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})


def solve_guarantee(settings: PrivacySettings, num_units: int, expected_batch: int, steps: int) -> Guarantee:
    """Computes the noise that the settings need.

    Args:
        settings: Settings of the run.
        num_units: Number of units of the training split.
        expected_batch: Expected number of units in a step.
        steps: Steps of the whole run.

    Raises:
        ConfigError: The expected batch exceeds the split, or delta is too large for its size.
    """
    if expected_batch > num_units:
        raise ConfigError(
            f"`trainer.global_batch_size` is {expected_batch}, but the training split has {num_units} "
            f"{settings.unit}s. With privacy it is the expected number of a random sample. Choose at most the size of "
            "the split."
        )
    if settings.delta >= 1 / num_units:
        raise ConfigError(
            f"`privacy.delta` is {settings.delta}, but the training split has {num_units:,} {settings.unit}s. A run "
            f"that publishes one of them would satisfy such a delta. Choose less than {1 / num_units:.1e}."
        )
    rate = expected_batch / num_units
    sigma = solve_sigma(settings.epsilon, settings.delta, rate, steps)
    return Guarantee(settings.epsilon, settings.delta, settings.unit, settings.clip, sigma, expected_batch, rate, steps)
