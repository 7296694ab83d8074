"""Facts of the splits of a run: rows read, used and skipped, labels with their counts, and the text that was cut."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

_PLACE = re.compile(r", ((?:rows?|lines?|sentence|article|file) .*?): (.*)", re.DOTALL)
_NUMBER = {name: re.compile(rf"\b{name} (\d+)") for name in ("row", "line")}
_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Cutting:
    """Texts of a split, and what does not fit into their sequences.

    Attributes:
        max_length: Most tokens of a sequence, special tokens included; 0 where nothing is cut, or texts have several
            limits.
        texts: Sequences of texts or pairs of texts.
        cut: Those of them that lose tokens.
        tokens: Tokens of all texts, special tokens aside.
        lost: Those of them that are cut off.
    """

    max_length: int = 0
    texts: int = 0
    cut: int = 0
    tokens: int = 0
    lost: int = 0

    @property
    def limit(self) -> str:
        """Returns the limit in words; "" where there are several."""
        return f" at {self.max_length} tokens" if self.max_length else ""

    @property
    def lost_share(self) -> float:
        """Share of the tokens that is cut off."""
        return self.lost / self.tokens if self.tokens else 0.0


NO_CUTTING = Cutting()


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """One split; every source of this package has it as `facts`.

    Rows that were read are those that were skipped, left out, used, or given to splits without a file of their own.

    Attributes:
        rows: Rows that are used.
        unit: Word for a row: "rows", or "sequences" where the data has no rows.
        file: File of the split; "" where the split is a share of the rows of `train`.
        read: Rows that were read of that file, skipped ones included.
        skipped: Message of each bad row, which names file and row.
        num_skipped: Rows that were skipped; a message may stand for several.
        left_out: Good rows that are not used, by reason.
        repaired: Rows that were corrected while they were read.
        labels: Rows, or entities, by label; empty where rows have no labels.
        notes: Further facts, by name.
        cutting: Texts and what is cut off.
        warnings: What the reader or the task found wrong.
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
    warnings: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """Returns the facts as values for JSON, without empty ones and without messages."""
        own = {"file": self.file, "read": self.read, "skipped": self.num_skipped} if self.file else {}
        found = {"left_out": self.left_out, "repaired": self.repaired, "labels": self.labels, "notes": self.notes}
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
            **{name: dict(value) if isinstance(value, Mapping) else value for name, value in found.items() if value},
            **(cut if cutting.texts else {}),
        }


def skipped_rows(splits: Mapping[str, SplitFacts]) -> Iterator[dict[str, Any]]:
    """Yields a record for each skipped row: split, file, place, row and line where they are known, and the reason."""
    for split, facts in splits.items():
        for message in facts.skipped:
            found = _PLACE.search(message)
            file, place, reason = (
                (message[: found.start()], found[1], found[2]) if found is not None else (facts.file, "", message)
            )
            numbers = {name: int(number[1]) for name, of in _NUMBER.items() if (number := of.search(place)) is not None}
            yield {"split": split, "file": file, "place": place, **numbers, "reason": reason}


def range_of(numbers: Sequence[float]) -> str:
    """Returns the range and the mean of the numbers that rows have for labels, in words."""
    return f"{min(numbers):.4g} to {max(numbers):.4g}, mean {sum(numbers) / len(numbers):.4g}"


@runtime_checkable
class HasFacts(Protocol):
    """A source of sequences that knows the facts of its split."""

    facts: SplitFacts


S = TypeVar("S", bound=HasFacts)


def with_facts(
    source: S, read: SplitFacts, labels: Iterable[str] = (), known: Sequence[str] = (), warnings: Sequence[str] = ()
) -> S:
    """Adds what was read of a split to what its source knows of the texts.

    Args:
        source: Made of the rows of the split.
        read: Facts of its rows.
        labels: Label of each row or entity.
        known: The label set in the order of scores, of which labels without a row are counted as 0.
        warnings: What the task found wrong.

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
    """Returns the facts of each split; of a source that has none, how many sequences it has."""
    return {
        split: source.facts if isinstance(source, HasFacts) else SplitFacts(len(source), unit="sequences")
        for split, source in sources.items()
    }
