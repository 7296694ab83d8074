"""The seam of audits: an audit checks its input, names the rows that it needs predicted, and judges the predictions.

An audit is one class with one file in conf/audit. It may live outside of this package. A `RowAudit` judges predictions;
the rows of all such audits are predicted in one packed pass. A `ModelAudit` runs the model itself, for example in
rounds.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from framework.audits.intervals import Interval
from framework.data.personal_data.masking import TextMasking
from framework.data.planning.plan import SequenceSource
from framework.modules.inference import Inference
from framework.runs.trained import Trained

Texts = Mapping[str, str]
"""Values of one row to predict, by field of the task (`Task.fields`)."""

Prediction = Mapping[str, Any]
"""Prediction of one row, as `framework.predict` writes it."""


@dataclass(frozen=True)
class Case:
    """A failed case, as the report shows it.

    Attributes:
        part: Name of the test or group that the case belongs to.
        text: Text of the case; several texts are separated by line ends.
        expected: Expectation that the case does not meet.
        predicted: Prediction of the model.
    """

    part: str
    text: str
    expected: str
    predicted: str


@dataclass(frozen=True)
class Finding:
    """Result of an audit.

    Attributes:
        measure: Name of the rate, for example "failed cases".
        rate: 0 for a model without the fault; a larger rate is worse. `fail_above` compares it.
        interval: Interval of the rate; None if it has none.
        num_cases: Number of cases that the rate is computed from.
        summary: Result in one sentence.
        parts: Rows of a table, for example one per test, with the same keys in each row. Floats are written with 4
            decimals.
        worst: Failed cases, worst first.
        notes: Sentences on cases that were not run, and on limits of the result.
    """

    measure: str
    rate: float
    interval: Interval | None
    num_cases: int
    summary: str
    parts: Sequence[Mapping[str, str | int | float | None]] = ()
    worst: Sequence[Case] = ()
    notes: Sequence[str] = ()


class Subject:
    """Trained model that is audited, before it is moved to a device.

    Args:
        trained: Trained model with its task and tokenizer.
        split: Name of the split of the user's data that audits read.
        read_split: Function that reads the split.
        read_training: Function that reads the split `train` of the training.
        seed: Seed of all draws of the audits.

    Attributes:
        trained: Trained model.
        task: Task of the model.
        tokenizer: Tokenizer of the model.
        split: Name of the split.
        seed: Seed of all draws.
    """

    def __init__(
        self,
        trained: Trained,
        split: str,
        read_split: Callable[[], SequenceSource],
        read_training: Callable[[], SequenceSource],
        seed: int,
    ) -> None:
        self.trained = trained
        self.task = trained.task
        self.tokenizer = trained.tokenizer
        self.split = split
        self.seed = seed
        self._read_split = read_split
        self._read_training = read_training

    @cached_property
    def masking(self) -> TextMasking | None:
        """Masking of personal data in the training of the model; None: it had none."""
        layout = self.trained.file_layout
        return None if layout is None else layout.with_masks(self.tokenizer).masking

    @cached_property
    def source(self) -> SequenceSource:
        """Rows of the user's split with their labels, read at the first access.

        Raises:
            FrameworkError: The model is an export and no file is given, or a file cannot be used.
        """
        return self._read_split()

    @cached_property
    def training(self) -> SequenceSource:
        """Rows that the model was trained on, with their labels, read at the first access.

        Raises:
            FrameworkError: The model is an export and no file is given, or a file cannot be used.
        """
        return self._read_training()


class Audit(ABC):
    """One audit. Its constructor takes the keys of its config; constructors do not read files."""

    @abstractmethod
    def check(self, subject: Subject) -> None:
        """Reads and checks the input of the audit, before the model is moved to a device.

        All ranks call it and must prepare the same work.

        Raises:
            FrameworkError: The input cannot be used, or does not suit the task.
        """


class RowAudit(Audit):
    """Audit of predictions. Rows that several audits share are predicted once."""

    @abstractmethod
    def rows(self) -> Sequence[Texts]:
        """Returns the rows to predict; called after `check`. Equal rows may be repeated."""

    @abstractmethod
    def judge(self, predictions: Sequence[Prediction]) -> Finding:
        """Judges the predictions. The result must depend on them and on the config alone, not on the rank.

        Args:
            predictions: Predictions of `rows`, in the same order.
        """


class ModelAudit(Audit):
    """Audit that runs the model itself."""

    @abstractmethod
    def measure(self, inference: Inference) -> Finding:
        """Runs the model and returns the result, which must be the same on all ranks.

        Collective: all ranks must call.

        Args:
            inference: Model on its device; `Inference.predict` shares rows among processes.
        """
