"""Records of files, freed of repeats and split; what a record is, the data of each kind says.

Which split a record belongs to is a hash of its text, so it does not depend on the order of records, other records keep
their split when some are added, and equal texts never fall into two splits. The sizes of the splits are therefore close
to their fractions, not exact.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from framework.errors import ConfigError, DataError
from framework.random import key

logger = logging.getLogger(__name__)

_UNIT = 2.0**-64


class Record(Protocol):
    """One example of a file."""

    @property
    def place(self) -> str:
        """File, row and line, for messages."""

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for repeats of each other; the texts as `same_text` gives them."""

    @property
    def answer(self) -> Hashable:
        """What is to be predicted: records of one identity whose answers differ contradict each other."""


R = TypeVar("R", bound=Record)


def same_text(text: str) -> str:
    """Equal for texts that read the same: Unicode form NFC, runs of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def check_fractions(validation: float, test: float) -> None:
    """Checks the shares of what is read that become splits.

    Raises:
        ConfigError: One is below 0, or nothing is left for training.
    """
    for name, value in (("validation_fraction", validation), ("test_fraction", test)):
        if not 0 <= value < 1:
            raise ConfigError(f"{name} is {value}, it must be at least 0 and below 1.")
    if validation + test >= 1:
        raise ConfigError(
            f"validation_fraction={validation} and test_fraction={test} leave nothing for training; lower them until "
            "their sum is below 1."
        )


@dataclass(frozen=True)
class ReadSplits(Generic[R]):
    """What was read of files.

    Attributes:
        splits: Records of `train`, and where there are any of `validation` and `test`, in the order of the file.
        report: How many were read, left out by reason, and repaired.
        labels: The label set, or types of entities, in the order of scores; empty where there is none.
    """

    splits: dict[str, list[R]]
    report: dict[str, int]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitFiles:
    """Files by split, or shares of one file.

    Attributes:
        train: The training file.
        validation: A file of its own; None takes `validation_fraction` of the records of `train`.
        test: A file of its own; None takes `test_fraction` of the records of `train`.
        validation_fraction: Share of the records of `train`; 0 makes no split.
        test_fraction: Share of the records of `train`; 0 makes no split.
        deduplicate: Before splitting, leave out repeats of a text, all records of a text whose answers contradict each
            other, and training records whose text is in `validation` or `test`. Records of files of their own all stay.
        max_train_rows: Only so many records of `train`, a seeded choice in which a smaller number is part of a larger
            one.
        split_seed: Decides the splits and the choice.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    validation_fraction: float = 0.0
    test_fraction: float = 0.0
    deduplicate: bool = False
    max_train_rows: int | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_fractions(self.validation_fraction, self.test_fraction)
        if self.max_train_rows is not None and self.max_train_rows < 1:
            raise ConfigError(f"max_train_rows is {self.max_train_rows}, it must be at least 1.")

    def group(self, record: R) -> tuple[str, ...]:
        """What falls into one split as a whole: records of one identity, or of more that belong together."""
        return record.identity

    def read_files(self, read: Callable[[Path], list[R]]) -> dict[str, list[R]]:
        """The records of each file that is named, `train` first."""
        given = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: read(Path(path)) for split, path in given.items() if path is not None}

    def split(self, files: dict[str, list[R]], report: dict[str, int]) -> dict[str, list[R]]:
        """Divides the records of `train` as the settings say.

        Args:
            files: Of `read_files`.
            report: Gets the number of records that were read, and of those that were left out, by reason.

        Returns:
            Records of `train`, and where there are any of `validation` and `test`, in the order of the file.

        Raises:
            DataError: A split would be empty.
        """
        report["rows"] = sum(map(len, files.values()))
        files = dict(files)
        records = files.pop("train")
        if self.deduplicate:
            records = self._without_repeats(records, [each for others in files.values() for each in others], report)
        splits = self._divide(records) | files
        if self.max_train_rows is not None:
            splits["train"] = self._choose(splits["train"], self.max_train_rows)
        for split, rows in splits.items():
            if not rows:
                raise DataError(
                    f"{self.train}: no row is left for {split}, it needs at least one; give more rows, other "
                    "fractions, or a file of its own."
                )
        return {split: splits[split] for split in ("train", "validation", "test") if split in splits}

    def _without_repeats(self, records: list[R], evaluated: list[R], report: dict[str, int]) -> list[R]:
        """The first record of each text that is not evaluated on and whose records agree on the answer."""
        held_out = {record.identity for record in evaluated}
        first: dict[tuple[str, ...], R] = {}
        contradicted: dict[tuple[str, ...], R] = {}
        counts: Counter[tuple[str, ...]] = Counter()
        for record in records:
            identity = record.identity
            counts[identity] += 1
            if first.setdefault(identity, record).answer != record.answer and identity not in held_out:
                contradicted.setdefault(identity, record)
        kept = [each for identity, each in first.items() if identity not in contradicted and identity not in held_out]
        report["also_evaluated_on"] = sum(counts[identity] for identity in first if identity in held_out)
        report["contradicting"] = sum(counts[identity] for identity in contradicted)
        report["repeated"] = len(records) - len(kept) - report["also_evaluated_on"] - report["contradicting"]
        if report["contradicting"]:
            identity, other = next(iter(contradicted.items()))
            one = first[identity]
            logger.warning(
                f"{report['contradicting']} rows are left out because equal texts have different labels; for example "
                f"{one.place} has {one.answer!r} and {other.place} has {other.answer!r}."
            )
        logger.info("%s: %s", self.train, ", ".join(f"{name} {number}" for name, number in report.items()))
        return kept

    def _divide(self, records: list[R]) -> dict[str, list[R]]:
        test = self.test_fraction if self.test is None else 0.0
        validation = self.validation_fraction if self.validation is None else 0.0
        splits: dict[str, list[R]] = {"train": []}
        splits |= {split: [] for split, share in (("validation", validation), ("test", test)) if share > 0}
        for record in records:
            draw = key(self.split_seed, "split", *self.group(record)) * _UNIT
            splits["test" if draw < test else "validation" if draw < test + validation else "train"].append(record)
        return splits

    def _choose(self, records: list[R], size: int) -> list[R]:
        ranked = sorted(
            range(len(records)), key=lambda place: (key(self.split_seed, "choice", *records[place].identity), place)
        )
        return [records[place] for place in sorted(ranked[:size])]
