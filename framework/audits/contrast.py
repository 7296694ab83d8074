"""Contrast sets: texts with minimal edits that change their label (Gardner et al. 2020, arXiv:2004.02709)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from framework.audits.audit import Case, Finding, Prediction, RowAudit, Subject, Texts
from framework.audits.intervals import wilson
from framework.audits.labels import check_one_text, check_single_labels, map_labels
from framework.data.reading.rows import read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError

_NAME = "contrast"


@dataclass(frozen=True)
class _Labelled:
    text: str
    label: str


class Contrast(RowAudit):
    """Accuracy on original and edited texts, and consistency: the share of pairs of which both are right.

    Args:
        original: File of the original texts with their labels.
        edited: File of the edited texts; row i is the edit of row i of `original`. None: `original` also contains the
            edited texts, in `edited_text_column`.
        text_column: Column of the text.
        label_column: Column of the label.
        edited_text_column: Column of the edited text; None: `text_column` of `edited`.
        edited_label_column: Column of the label of the edited text; None: `label_column` of `edited`.
        labels: {label of the files: label of the model}; None: the files have the labels of the model.
        format: Format of the files; None: the defaults of TableFormat.

    Raises:
        ConfigError: `edited` is None, and the columns of the edited text and of its label are not given.
    """

    def __init__(
        self,
        original: str,
        edited: str | None = None,
        text_column: str = "text",
        label_column: str = "label",
        edited_text_column: str | None = None,
        edited_label_column: str | None = None,
        labels: dict[str, str] | None = None,
        format: TableFormat | None = None,
    ) -> None:
        if edited is None and (edited_text_column is None or edited_label_column is None):
            raise ConfigError(
                "audit.contrast.edited is null. The edited texts are in another file or in other columns. Give "
                "audit.contrast.edited=FILE, or audit.contrast.edited_text_column and edited_label_column."
            )
        self._original = Path(original)
        self._edited = Path(original if edited is None else edited)
        self._columns = (text_column, label_column)
        self._edited_columns = (edited_text_column or text_column, edited_label_column or label_column)
        self._labels = labels
        self._format = format
        self._pairs: list[tuple[_Labelled, _Labelled]] = []
        self._field = "text"

    def check(self, subject: Subject) -> None:
        """Reads the pairs.

        Raises:
            ConfigError: The task does not predict one label for one text, or the model lacks a label of the files.
            DataError: A file cannot be read, or the files have different numbers of rows.
        """
        known = check_single_labels(subject, _NAME)
        self._field = check_one_text(subject, _NAME)
        mask = str if subject.masking is None else subject.masking.text
        original = self._read(self._original, self._columns, mask)
        edited = self._read(self._edited, self._edited_columns, mask)
        if len(original) != len(edited):
            raise DataError(
                f"{self._original} has {len(original):,} rows and {self._edited} has {len(edited):,}. Row i of one "
                "file is the edit of row i of the other. Remove the rows without a partner."
            )
        given = {each.label for each in (*original, *edited)}
        mapped = map_labels(given, self._labels, known, f"audit.{_NAME}.labels")
        own = [[_Labelled(each.text, mapped[each.label]) for each in side] for side in (original, edited)]
        self._pairs = list(zip(*own, strict=True))

    def _read(self, path: Path, columns: tuple[str, str], mask: Callable[[str], str]) -> list[_Labelled]:
        return [
            _Labelled(mask(row.values[columns[0]]), row.values[columns[1]])
            for row in read_rows(path, columns, table_format=self._format)
        ]

    def rows(self) -> Sequence[Texts]:
        """Returns the original texts and then the edited texts."""
        return [{self._field: pair[side].text} for side in (0, 1) for pair in self._pairs]

    def judge(self, predictions: Sequence[Prediction]) -> Finding:
        """Returns the share of pairs that are not both right."""
        number = len(self._pairs)
        sides = (predictions[:number], predictions[number:])
        right = [
            [prediction["label"] == pair[side].label for prediction, pair in zip(sides[side], self._pairs, strict=True)]
            for side in (0, 1)
        ]
        both = [first and second for first, second in zip(*right, strict=True)]
        parts = [
            _part(name, values)
            for name, values in (("original", right[0]), ("edited", right[1]), ("both of a pair", both))
        ]
        worst = []
        for index, pair in enumerate(self._pairs):
            for side, name in enumerate(("original", "edited")):
                if not right[side][index]:
                    prediction = sides[side][index]
                    worst.append((prediction["probability"], name, pair[side], prediction))
        worst.sort(key=lambda each: -round(each[0], 3))
        shares = [f"{sum(values) / number:.1%}" for values in (*right, both)]
        return Finding(
            measure="pairs that are not both right",
            rate=1 - sum(both) / number,
            interval=wilson(number - sum(both), number),
            num_cases=number,
            summary=f"Accuracy is {shares[0]} on the original texts and {shares[1]} on the edited ones; in {shares[2]} "
            f"of {number:,} pairs both are right.",
            parts=parts,
            worst=[
                Case(name, each.text, each.label, f"{prediction['label']} ({prediction['probability']:.3f})")
                for _, name, each, prediction in worst
            ],
        )


def _part(name: str, right: Sequence[bool]) -> Mapping[str, str | int | float | None]:
    interval = wilson(sum(right), len(right))
    return {
        "texts": name,
        "accuracy": sum(right) / len(right),
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "number": len(right),
    }
