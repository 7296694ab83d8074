"""Parallel texts, read from two line-aligned files or two columns of a table, validated and split."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from framework.data.examples.splits import ReadSplits, SplitFiles, same_text
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import Reading, decode_line, raw_lines
from framework.data.reading.rows import Row, is_table, read_rows
from framework.data.reading.table_format import TableFile, TableFormat, check_columns
from framework.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class TextPair:
    """A text and its translation (`framework.data.examples.splits.Record`).

    Attributes:
        location: File and line or row, for messages.
        source: Source text as in the file.
        target: Target text as in the file.
    """

    location: str
    source: str
    target: str

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the normalized source, so that all translations of a text fall into one split."""
        return (same_text(self.source),)

    @property
    def answer(self) -> str:
        """Returns an empty text, because different translations of one text do not contradict each other."""
        return ""

    def masked(self, masking: TextMasking) -> "TextPair":
        """Returns the pair with masked texts."""
        return replace(self, source=masking.text(self.source), target=masking.text(self.target))


@dataclass(frozen=True)
class ParallelTextData(SplitFiles):
    """Text pairs from two line-aligned files, or from the rows of one table.

    Attributes:
        train_targets: File with the translations of the lines of `train`. None: `train` is a table with both texts.
        validation_targets: File with the translations of the lines of `validation`.
        test_targets: File with the translations of the lines of `test`.
        source_column: Table column (JSONL: key) of the source text.
        target_column: Table column (JSONL: key) of the translation.
        format: Format of the files. Line-aligned files use only its encoding. None: the defaults of TableFormat.
        on_empty: "error" rejects pairs with an empty text. "skip" drops such pairs and logs that.

    Raises:
        ConfigError: A split has a file of targets but no file of sources.
    """

    train_targets: str | None = None
    validation_targets: str | None = None
    test_targets: str | None = None
    source_column: str = "source"
    target_column: str = "target"
    format: TableFormat | None = None
    on_empty: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        for split in ("validation", "test"):
            if getattr(self, split) is None and getattr(self, f"{split}_targets") is not None:
                raise ConfigError(
                    f"{split}_targets is {getattr(self, f'{split}_targets')}, but {split} is null. Targets need "
                    f"sources. Set {split} to the file of the sources."
                )

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the column of the source texts."""
        return {"text": self.source_column}

    def rows_to_predict(self, table: TableFile, columns: Mapping[str, str], reading: Reading) -> Iterator[Row] | None:
        """Streams the lines of a text file if the training sources came from a text file. Returns None otherwise."""
        del columns
        if self.train_targets is None or table.format.kind is not None or is_table(table.path):
            return None
        check_columns(table.path, "lines of text", table.as_is, ["text"])
        return _lines(table, reading)

    def load(self) -> ReadSplits[TextPair]:
        """Reads, checks and splits the pairs.

        Raises:
            DataError: A file is missing, empty, damaged or not UTF-8, or lacks a column; two aligned files have
                different numbers of lines; a text is empty and `on_empty` is "error"; or a split would be empty.
        """
        targets = {
            self.train: self.train_targets,
            self.validation: self.validation_targets,
            self.test: self.test_targets,
        }

        def read(path: Path) -> Iterator[TextPair]:
            translations = next(value for name, value in targets.items() if name is not None and Path(name) == path)
            return self._rows(path) if translations is None else self._lines(path, Path(translations))

        pairs = self.read_files(lambda path, _: read(path), self.on_empty)
        for split in pairs.records:
            pairs.checked(split, _complete_pair)
        return self.split(pairs)

    def _rows(self, path: Path) -> Iterator[TextPair]:
        for row in read_rows(path, [self.source_column, self.target_column], None, self.format):
            yield TextPair(f"{path}, {row.location}", row.values[self.source_column], row.values[self.target_column])

    def _lines(self, sources: Path, targets: Path) -> Iterator[TextPair]:
        """Pairs the lines of two files.

        Raises:
            DataError: The files have different numbers of lines.
        """
        encoding = (self.format or TableFormat()).codec
        numbers = [0, 0]
        for pair in zip_longest(raw_lines(sources, Reading()), raw_lines(targets, Reading())):
            numbers = [number if line is None else line[0] for line, number in zip(pair, numbers, strict=True)]
            if pair[0] is None or pair[1] is None:
                continue
            texts = [
                decode_line(path, line[0], line[1], encoding).rstrip("\r\n")
                for path, line in zip((sources, targets), pair, strict=True)
            ]
            yield TextPair(f"{sources}, line {numbers[0]}", *texts)
        if numbers[0] != numbers[1]:
            raise DataError(
                f"{sources} has {numbers[0]} lines and {targets} has {numbers[1]}. Each line of one file must "
                "translate the same line of the other. Supply two files with the same number of lines."
            )


def _lines(table: TableFile, reading: Reading) -> Iterator[Row]:
    for number, raw in raw_lines(table.path, reading):
        with reading.handling_bad_row():
            text = decode_line(table.path, number, raw, table.format.codec).rstrip("\r\n")
            yield Row(number, number, {"text": text}, kept={"text": text})


def _complete_pair(pair: TextPair) -> TextPair:
    """Returns the pair if neither text is empty."""
    empty_text = "target" if pair.source.strip() else "source"
    if not pair.source.strip() or not pair.target.strip():
        raise DataError(
            f"{pair.location}: the {empty_text} is empty. A pair needs both texts. Add the text, remove the pair, or "
            "set data.on_empty=skip."
        )
    return pair
