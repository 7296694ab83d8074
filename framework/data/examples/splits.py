"""Reads records of files, removes duplicates and divides them into splits; each kind of data defines its own record.

A hash of its text assigns a record to a split. So the split does not depend on the order of records, records keep their
split when others are added, and equal texts never belong to two splits. The sizes of the splits are therefore close to
their fractions, but not exact.
"""

import copy
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar, cast

from framework.data.examples.answers import parse_list
from framework.data.examples.fractions import check_fractions
from framework.data.facts import SplitFacts
from framework.data.personal_data.kinds import KINDS, REGIONS, Detection, check_kinds, check_names_are_used
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import Reading
from framework.data.reading.table_format import Row, TableFile
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError, check_at_least
from framework.random import key

_UNIT = 2.0**-64


class Record(Protocol):
    """One example of a file."""

    @property
    def location(self) -> str:
        """Returns file, row and line, for messages."""

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the texts, normalised by `same_text`; duplicates have the same identity."""

    @property
    def answer(self) -> Hashable:
        """Returns the value to predict; records with one identity and different answers contradict each other."""


R = TypeVar("R", bound=Record)


class MaskableRecord(Record, Protocol):
    """Example whose personal data can be masked."""

    def masked(self, masking: TextMasking) -> Self:
        """Returns the example with masked texts; its spans move with them.

        Raises:
            DataError: The example cannot be used any more.
        """


def same_text(text: str) -> str:
    """Returns a normal form of a text: Unicode form NFC, with each run of white space replaced by one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


@dataclass(frozen=True)
class ReadSplits(Generic[R]):
    """Records by split.

    Attributes:
        splits: Records of `train` and, if they exist, of `validation` and `test`, in file order.
        facts: Facts about the rows read, skipped and left out, by split.
        labels: Label set, or entity types, in the order of scores; empty if there is none.
    """

    splits: dict[str, list[R]]
    facts: dict[str, SplitFacts]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileRecords(Generic[R]):
    """Records of each given file, `train` first, before they are split.

    Attributes:
        records: Records by the split of their file.
        readings: Handling of bad rows, and the rows skipped so far, by split.
        files: Path of the file by split.
        found: Number of finds of personal data by split and kind, after the records were masked.
    """

    records: dict[str, list[R]]
    readings: dict[str, Reading]
    files: dict[str, Path]
    found: dict[str, dict[str, int]] = field(default_factory=dict)

    def collect_labels(self, labels: Callable[[R], Iterable[str]], outside: Collection[str] = ()) -> set[str]:
        """Returns the labels of all files, so that a rare label need not occur in `train`.

        Args:
            labels: Function that returns the labels of a record.
            outside: Labels that count only if `train` has them.
        """
        by_split = {
            split: {label for record in rows for label in labels(record)} for split, rows in self.records.items()
        }
        return by_split["train"].union(*by_split.values()) - (set(outside) - by_split["train"])

    def checked(self, split: str, check: Callable[[R], R]) -> None:
        """Replaces each record of a file by the result of `check`; a record that it rejects is a bad row.

        Args:
            split: Split of the file.
            check: Raises DataError for a bad record.
        """
        kept = []
        for record in self.records[split]:
            with self.readings[split].handling_bad_row():
                kept.append(check(record))
        self.records[split] = kept


@dataclass(frozen=True)
class SplitFiles:
    """Files by split, or shares of one file.

    Attributes:
        train: Training file.
        validation: Validation file; None: `validation_fraction` of the records of `train`.
        test: Test file; None: `test_fraction` of the records of `train`.
        validation_fraction: Share of the records of `train` for validation; 0 creates no validation split.
        test_fraction: Share of the records of `train` for testing; 0 creates no test split.
        deduplicate: True to remove records of `train` before splitting: duplicates of a text, all records of a text
            with contradicting answers, and records whose text is in the file of `validation` or `test`. Records of
            these files are all kept.
        max_train_rows: Largest number of training records; None: all. The choice is random but seeded, and a smaller
            choice is a subset of a larger one.
        split_seed: Seed of the splits and of the choice.
        personal_data: "mask" replaces personal data in the texts of all splits by one token per kind; None: no search.
            Splits and duplicates are those of the masked texts.
        personal_data_kinds: Kinds to find, of `framework.data.personal_data.kinds.KINDS`; empty: all.
        personal_data_regions: Regions whose national numbers are found, as in `Detection`; empty: `REGIONS`.
        personal_data_names: File of names to find, one per line; None: no names.
        folder: Folder from which a config composes the paths above.
        masking: Masking of the texts, which `with_masks` sets.
        unit_column: Column of the privacy unit of each row of `train`, which `with_units` sets.
    """

    masking: ClassVar[TextMasking | None] = None
    unit_column: ClassVar[str | None] = None

    train: str
    validation: str | None = None
    test: str | None = None
    validation_fraction: float = 0.0
    test_fraction: float = 0.0
    deduplicate: bool = False
    max_train_rows: int | None = None
    split_seed: int = 0
    personal_data: Literal["mask"] | None = None
    personal_data_kinds: list[str] = field(default_factory=list)
    personal_data_regions: list[str] = field(default_factory=list)
    personal_data_names: str | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        check_fractions(self.validation_fraction, self.test_fraction)
        check_kinds(self.personal_data_kinds)
        check_names_are_used(self.personal_data, personal_data_names=self.personal_data_names)
        if self.max_train_rows is not None:
            check_at_least("data.max_train_rows", self.max_train_rows, 1, "Use null to keep all rows.")

    def group(self, record: R) -> tuple[str, ...]:
        """Returns the key of a record's group; a group belongs to one split. By default, the identity is the key."""
        return record.identity

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns {field of prediction: column of a table} for fields whose column is configured for training."""
        return {}

    @classmethod
    def alone(cls, split: str, file: Any) -> dict[str, Any]:
        """Returns the values of the files with which one split of a new file is read.

        Args:
            split: Name of the split.
            file: Value of its file.
        """
        return {"train": file, split: file}

    def rows_to_predict(self, table: TableFile, columns: Mapping[str, str], reading: Reading) -> Iterator[Row] | None:
        """Streams the rows of a file that training does not read as a table of `field_columns`.

        Args:
            table: File, its format, and the columns that are also kept unchanged (`TableFile.as_is`).
            columns: {field: column}, which replaces the columns of training.
            reading: Handling of bad rows.

        Returns:
            Rows with the fields of prediction, which need no answers; None if training reads such files as tables.
        """
        del table, columns, reading
        return None

    def with_masks(self, tokenizer: Tokenizer) -> Self:
        """Returns data that masks personal data for the vocabulary of a tokenizer; itself if nothing is masked.

        Raises:
            ConfigError: The vocabulary has no mask for a kind, or the search cannot be set up (`Detection.of`).
        """
        if self.personal_data is None:
            return self
        kinds, regions = self.personal_data_kinds or KINDS, self.personal_data_regions or REGIONS
        masking = TextMasking.of(Detection.of(kinds, regions, self.personal_data_names), tokenizer)
        return self._with("masking", masking)

    def with_units(self, column: str) -> Self:
        """Returns data that reads the privacy unit of each row of `train` (`SplitFacts.units`) from a column."""
        return self._with("unit_column", column)

    def _with(self, name: str, value: object) -> Self:
        data = copy.copy(self)
        object.__setattr__(data, name, value)
        return data

    def masked_values(self, values: Mapping[str, str], list_fields: Collection[str]) -> dict[str, str]:
        """Returns the fields of a row to predict with masks, as in training.

        Args:
            values: Text of each field of the task.
            list_fields: Fields that hold a list as JSON.
        """
        assert self.masking is not None, "with_masks must be called before texts are masked"
        masked = {name: self.masking.text(value) for name, value in values.items()}
        for name in list_fields:
            items = parse_list(values.get(name, ""))
            if items is not None:
                masked[name] = json.dumps([self.masking.text(str(item)) for item in items], ensure_ascii=False)
        return masked

    def mask(self, read: FileRecords[Any]) -> None:
        """Masks the records of each file once. `split` calls it, unless the reader of a file needs masks earlier."""
        if self.personal_data is None or read.found:
            return
        masking = self.masking
        assert masking is not None, "with_masks must be called before texts are read"
        for split in read.records:
            masking.counts.clear()
            read.checked(split, lambda record: cast(MaskableRecord, record).masked(masking))
            read.found[split] = dict(sorted(masking.counts.items()))

    def read_files(
        self, read: Callable[[Path, Reading], Iterable[R]], on_bad_row: Literal["error", "skip"]
    ) -> FileRecords[R]:
        """Reads each given file once, `train` first.

        Args:
            read: Function that returns the records of a file.
            on_bad_row: Handling of bad rows, as in Reading.

        Raises:
            ConfigError: A path is a URL, or is empty, which would mean the working folder.
        """
        given = {"train": self.train, "validation": self.validation, "test": self.test}
        for split, path in given.items():
            if path == "":
                raise ConfigError(f"`data.{split}` is empty. It must be the path of a file or folder. Give one.")
            if path is not None and "://" in path:
                raise ConfigError(
                    f"`data.{split}` is {path}, a URL. Labelled data is read from files and folders. Download it first."
                )
        files = {split: Path(path) for split, path in given.items() if path is not None}
        records: dict[str, list[R]] = {}
        readings: dict[str, Reading] = {}
        for split, file in files.items():
            same = next((other for other in records if files[other] == file), None)
            if same is None:
                column = self.unit_column if split == "train" else None
                conceal = None if self.masking is None else self.masking.message
                readings[split] = Reading(on_bad_row, max_remembered=None, unit_column=column, conceal=conceal)
                records[split] = list(read(file, readings[split]))
            else:  # evaluation of a new file, which is also given as `train`
                readings[split] = replace(readings[same], skipped=list(readings[same].skipped))
                records[split] = list(records[same])
        return FileRecords(records, readings, files)

    def split(self, read: FileRecords[R], labels: tuple[str, ...] = ()) -> ReadSplits[R]:
        """Divides the records of `train` into the configured splits.

        Args:
            read: Result of `read_files`.
            labels: Label set, as in ReadSplits.

        Raises:
            DataError: A file has bad rows only, or a split would be empty.
        """
        self.mask(read)
        for split, path in read.files.items():
            if not read.records[split] and read.readings[split].skipped:
                raise DataError(f"{path} has no usable row. The first error: {read.readings[split].skipped[0]}")
        files = dict(read.records)
        left_out: dict[str, int] = {}
        warnings: list[str] = []
        records = files.pop("train")
        if self.deduplicate:
            evaluated = [each for others in files.values() for each in others]
            records = self._without_repeats(records, evaluated, left_out, warnings)
        splits = self._divide(records) | files
        if self.max_train_rows is not None:
            left_out["beyond max_train_rows"] = max(0, len(splits["train"]) - self.max_train_rows)
            splits["train"] = self._choose(splits["train"], self.max_train_rows)
        for split, rows in splits.items():
            if not rows:
                raise DataError(
                    f"{self.train}: the split {split} has no rows. Each split needs at least one. Add rows, change "
                    f"the fractions, or give {split} its own file."
                )
        splits = {split: splits[split] for split in ("train", "validation", "test") if split in splits}
        facts = {split: SplitFacts(rows=len(rows)) for split, rows in splits.items()}
        for split, path in read.files.items():
            reading = read.readings[split]
            facts[split] = SplitFacts(
                rows=len(splits[split]),
                file=str(path),
                read=len(read.records[split]) + reading.num_skipped,
                skipped=reading.skipped,
                num_skipped=reading.num_skipped,
                left_out={reason: number for reason, number in left_out.items() if number} if split == "train" else {},
                warnings=warnings if split == "train" else (),
                personal_data=read.found.get(split, {}),
                units=self._units(splits[split], read.readings[split].units) if split == "train" else {},
            )
        return ReadSplits(splits, facts, labels)

    def _units(self, records: list[R], units: Mapping[str, str]) -> dict[str, str]:
        """Returns the privacy unit of each training record by its location; empty if units are not read.

        Raises:
            DataError: The files have no columns, or a record has no unit.
        """
        if self.unit_column is None:
            return {}
        for record in records:
            if record.location not in units:
                raise DataError(
                    f"{record.location}: the file has no columns, but privacy.unit_column is {self.unit_column}. Units "
                    "are read from tables and from lists of JSON objects. Convert the file, or set "
                    "privacy.unit_column=null."
                )
            if not units[record.location]:
                raise DataError(
                    f"{record.location}: the column {self.unit_column!r} is empty. privacy.unit_column needs the unit "
                    "of each row. Fill it in, or remove the row."
                )
        return {record.location: units[record.location] for record in records}

    def _without_repeats(
        self, records: list[R], evaluated: list[R], left_out: dict[str, int], warnings: list[str]
    ) -> list[R]:
        """Returns the first record of each text that is not evaluated on and whose records have the same answer."""
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
        evaluated_on = sum(counts[identity] for identity in first if identity in held_out)
        contradicting = sum(counts[identity] for identity in contradicted)
        left_out["also evaluated on"] = evaluated_on
        left_out["contradicting"] = contradicting
        left_out["repeated"] = len(records) - len(kept) - evaluated_on - contradicting
        if contradicting:
            identity, other = next(iter(contradicted.items()))
            one = first[identity]
            warnings.append(
                f"{contradicting:,} rows are left out because equal texts have different labels. For example, "
                f"{one.location} has {one.answer!r} and {other.location} has {other.answer!r}."
            )
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
            range(len(records)), key=lambda index: (key(self.split_seed, "choice", *records[index].identity), index)
        )
        return [records[index] for index in sorted(ranked[:size])]
