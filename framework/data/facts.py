"""Facts about the splits of a run: rows read, used and skipped, labels with their counts, and truncated text."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

_LOCATION = re.compile(r", ((?:rows?|lines?|sentence|article|file) .*?): (.*)", re.DOTALL)
_NUMBER = {name: re.compile(rf"\b{name} (\d+)") for name in ("row", "line")}
_DECIMALS = 6
# An apostrophe within a word opens no quotation.
_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)
_OPEN_QUOTE = re.compile(r"""(?<!\w)['"].*""", re.DOTALL)
_NOT_SHOWN = "(not shown)"


@dataclass(frozen=True, slots=True)
class Cutting:
    """Counts of texts and tokens of a split that were truncated.

    Attributes:
        max_length: Largest number of tokens of a sequence, including special tokens; 0 if nothing is truncated, or if
            texts have several limits.
        texts: Number of texts or pairs.
        cut: Number of truncated texts or pairs.
        tokens: Number of tokens of all texts, without special tokens.
        lost: Number of tokens that were cut off.
    """

    max_length: int = 0
    texts: int = 0
    cut: int = 0
    tokens: int = 0
    lost: int = 0

    @property
    def limit(self) -> str:
        """Returns the limit in words; "" if there are several."""
        return f" at {self.max_length} tokens" if self.max_length else ""

    @property
    def lost_share(self) -> float:
        """Returns the share of tokens that are cut off."""
        return self.lost / self.tokens if self.tokens else 0.0


NO_CUTTING = Cutting()


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """Facts about one split; every source of this package has an attribute `facts`.

    The number of rows read is the sum of the rows skipped, left out, used, and assigned to splits that have no file of
    their own.

    Attributes:
        rows: Number of rows used.
        unit: Word for a row: "rows", or "sequences" if the data has no rows.
        file: File of the split; "" if the split is a share of the rows of `train`.
        read: Number of rows read from that file, including skipped ones.
        skipped: Message for each bad row, with file and row.
        num_skipped: Number of rows skipped; one message may cover several.
        left_out: Number of valid rows that are not used, by reason.
        repaired: Number of rows corrected while reading.
        labels: Number of rows or entities by label; empty if rows have no labels.
        notes: Further facts, by name.
        cutting: Counts of truncated texts.
        personal_data: Number of masked finds of personal data in the file, by kind.
        warnings: Warnings of the reader and the task.
        units: Privacy unit of each row, by its location, in the order of the rows; empty if units are not read.
    """

    rows: int = 0
    unit: str = "rows"
    file: str = ""
    read: int = 0
    skipped: Sequence[str] = ()
    num_skipped: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    repaired: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    cutting: Cutting = NO_CUTTING
    personal_data: Mapping[str, int] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    units: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def all_notes(self) -> dict[str, str]:
        """Returns the notes, and one on personal data if some was masked."""
        found = ", ".join(f"{kind} {number:,}" for kind, number in self.personal_data.items())
        return {**self.notes, **({"personal data masked": found} if found else {})}

    def as_json(self) -> dict[str, Any]:
        """Returns the facts as JSON values, without empty ones and messages."""
        own = {"file": self.file, "read": self.read, "skipped": self.num_skipped} if self.file else {}
        optional = {
            "left_out": self.left_out,
            "repaired": self.repaired,
            "labels": self.labels,
            "notes": self.all_notes,
        }
        cutting = self.cutting
        cut = {
            "texts": cutting.texts,
            "cut_texts": cutting.cut,
            "tokens": cutting.tokens,
            "lost_share": round(cutting.lost_share, _DECIMALS),
            **({"max_length": cutting.max_length} if cutting.max_length else {}),
        }
        return {
            self.unit: self.rows,
            **own,
            **{name: dict(value) if isinstance(value, Mapping) else value for name, value in optional.items() if value},
            **(cut if cutting.texts else {}),
        }


def skipped_rows(splits: Mapping[str, SplitFacts]) -> Iterator[dict[str, Any]]:
    """Yields a record for each skipped row.

    Its keys are `split`, `file`, `place` (for example "row 3, line 7"), `row` and `line` if known, and `reason`.
    """
    for split, facts in splits.items():
        for message in facts.skipped:
            match = _LOCATION.search(message)
            file, location, reason = (
                (message[: match.start()], match[1], match[2]) if match is not None else (facts.file, "", message)
            )
            yield {"split": split, "file": file, "place": location, **_numbers(location), "reason": reason}


def split_location(location: str) -> dict[str, Any]:
    """Returns the `file` and `place` of a location such as "rows.csv, row 3 (line 4)", and its `row` and `line`."""
    match = _LOCATION.search(f"{location}: ")
    file, place = (location, "") if match is None else (location[: match.start()], match[1])
    return {"file": file, "place": place, **_numbers(place)}


def _numbers(place: str) -> dict[str, int]:
    return {name: int(number[1]) for name, pattern in _NUMBER.items() if (number := pattern.search(place)) is not None}


def without_texts(splits: Mapping[str, SplitFacts]) -> dict[str, SplitFacts]:
    """Returns the facts with quoted cells removed. Messages keep the file, the row, the column and the rule.

    Labels and their counts remain.
    """
    return {
        split: replace(
            facts,
            skipped=[_without_cells(message) for message in facts.skipped],
            warnings=[_without_quotations(message) for message in facts.warnings],
        )
        for split, facts in splits.items()
    }


def _without_cells(message: str) -> str:
    match = _LOCATION.search(message)
    if match is None:
        return _without_quotations(message)
    column = _QUOTED.match(message, match.start(2))
    start = match.start(2) if column is None else column.end()
    return message[:start] + _without_quotations(message[start:])


def _without_quotations(text: str) -> str:
    """Hides quoted values; an opening quotation mark without a closing one begins a value that was shortened."""
    kept = _QUOTED.sub(_NOT_SHOWN, text)
    return _OPEN_QUOTE.sub(_NOT_SHOWN, kept)


def range_of(numbers: Sequence[float]) -> str:
    """Returns the range and the mean of numeric labels, in words."""
    return f"{min(numbers):.4g} to {max(numbers):.4g}, mean {sum(numbers) / len(numbers):.4g}"


@runtime_checkable
class HasFacts(Protocol):
    """Source of sequences with facts about its split."""

    facts: SplitFacts


S = TypeVar("S", bound=HasFacts)


def with_facts(
    source: S, read: SplitFacts, labels: Iterable[str] = (), known: Sequence[str] = (), warnings: Sequence[str] = ()
) -> S:
    """Combines facts about the rows of a split with the facts of its source about the texts.

    Args:
        source: Source built from the rows of the split.
        read: Facts about the rows.
        labels: Label of each row or entity.
        known: Label set in the order of scores; labels without a row get the count 0.
        warnings: Warnings of the task.

    Returns:
        The same source.
    """
    counts = dict.fromkeys(known, 0) | Counter(labels)
    own = source.facts
    source.facts = replace(
        read,
        labels=counts,
        notes={**read.notes, **own.notes},
        cutting=own.cutting,
        warnings=[*read.warnings, *warnings],
    )
    return source


def facts_of(sources: Mapping[str, Sized]) -> dict[str, SplitFacts]:
    """Returns the facts of each split; for a source without facts, only its number of sequences."""
    return {
        split: source.facts if isinstance(source, HasFacts) else SplitFacts(len(source), unit="sequences")
        for split, source in sources.items()
    }
