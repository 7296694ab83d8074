"""Who took an interest in what and when, and the texts of the items; checked, and split by time.

All splits come from two moments that hold for everybody: what lies before the first is trained on, what lies between
them is validation, what comes after is the test. So nothing that is trained on, counted or averaged is younger than
anything that is evaluated (Ji et al. 2023, "A critical study on data leakage in recommender system offline
evaluation", ACM TOIS 41, section 5).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from framework.data.examples.answers import number
from framework.data.examples.splits import check_fractions
from framework.data.facts import SplitFacts
from framework.data.reading.files import Reading
from framework.data.reading.header import plain_float
from framework.data.reading.rows import Row, read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")
Moment = str | float
"""Seconds since 1970, or a date in ISO 8601; without a time zone it is UTC."""

_NUMBER = number()


@dataclass(frozen=True)
class Interactions:
    """What an InteractionData holds; arrays are (interactions,), ordered by time, equal times as in the file.

    Attributes:
        items: Ids of the catalogue, in the order of its file.
        texts: Of each of them.
        users: Place of the user among all users, in the order in which they come in the file.
        places: Place of the item in the catalogue.
        times: Seconds.
        ratings: NaN where there are none.
        is_liked: True where the interaction says that the user likes the item.
        splits: Place of the split in SPLITS.
        names: The splits that there are.
        facts: Numbers of rows read, skipped and left out, over all splits.
    """

    items: tuple[str, ...]
    texts: tuple[str, ...]
    users: np.ndarray
    places: np.ndarray
    times: np.ndarray
    ratings: np.ndarray
    is_liked: np.ndarray
    splits: np.ndarray
    names: tuple[str, ...]
    facts: SplitFacts

    def likes(self) -> "Likes":
        """What is liked, user by user."""
        chosen = np.flatnonzero(self.is_liked)
        chosen = chosen[self.users[chosen].argsort(kind="stable")]
        users, times = self.users[chosen], self.times[chosen]
        place = np.arange(len(chosen))
        is_new_user = np.diff(users, prepend=-1) != 0
        is_new_moment = is_new_user | (np.diff(times, prepend=-np.inf) != 0)
        starts = np.maximum.accumulate(np.where(is_new_user, place, 0))
        num_earlier = np.maximum.accumulate(np.where(is_new_moment, place, 0)) - starts
        return Likes(users, self.places[chosen], times, self.splits[chosen], starts, num_earlier)


@dataclass(frozen=True)
class Likes:
    """What is liked; arrays are (likes,), ordered by user, then time, then place in the file.

    Attributes:
        users: As in Interactions.
        places: As in Interactions.
        times: As in Interactions.
        splits: As in Interactions.
        starts: Where the likes of the user begin.
        num_earlier: How many of the user's likes are strictly earlier: those from `starts` on.
    """

    users: np.ndarray
    places: np.ndarray
    times: np.ndarray
    splits: np.ndarray
    starts: np.ndarray
    num_earlier: np.ndarray


@dataclass(frozen=True)
class InteractionData:
    """Two tables that `framework.data.reading.rows` reads: interactions of users with items, and texts of items.

    Of several interactions of a user with an item the first in time counts.

    Attributes:
        interactions: File of the interactions, one a row.
        items: File of the catalogue, one item a row; its ids stand in `item_column` too.
        user_column: Column, in JSONL key, of the user.
        item_column: Column of the item, in both files.
        time_column: Column of the time (`Moment`).
        rating_column: Column of a number; None: there is none.
        min_rating: What is rated at least so is liked, what is rated lower is only known to the user; None: whatever a
            user took an interest in is liked.
        text_columns: Columns of the catalogue whose cells, empty ones left out, make the text of an item together.
        validation_fraction: Share of the interactions that lies between the two moments; 0 makes no split.
        test_fraction: Share of those after the second; 0 makes no split.
        validation_from: The first moment itself; `validation_fraction` then says nothing.
        test_from: The second moment itself; `test_fraction` then says nothing.
        format: Format of the files; None: the defaults of TableFormat.
        items_format: Format of the catalogue; None: the same as `format`.
        on_bad_row: What is done about a row that is broken, an item without a text or with a second one, and an
            interaction whose user is empty, whose item is not in the catalogue, or whose time or rating cannot be read:
            "error", or "skip", which counts it.

    Raises:
        ConfigError: A share is out of range, moments are in no order, or columns do not go together.
    """

    interactions: str
    items: str
    user_column: str = "user"
    item_column: str = "item"
    time_column: str = "time"
    rating_column: str | None = None
    min_rating: float | None = None
    text_columns: list[str] = field(default_factory=lambda: ["text"])
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    validation_from: Moment | None = None
    test_from: Moment | None = None
    format: TableFormat | None = None
    items_format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        check_fractions(self.validation_fraction, self.test_fraction)
        if self.min_rating is not None and self.rating_column is None:
            raise ConfigError(
                f"data.min_rating is {self.min_rating}, but rating_column is null; name the column, or set it to null."
            )
        if not 0 < len(self.text_columns) == len(set(self.text_columns)):
            raise ConfigError(
                f"data.text_columns is {self.text_columns}, it must name at least one column, none twice."
            )
        first, second = map(self._given_moment, SPLITS[1:])
        if first is not None and second is not None and first >= second:
            raise ConfigError(
                f"data.validation_from={self.validation_from} is not before test_from={self.test_from}; swap "
                "or change them."
            )

    def load(self) -> Interactions:
        """Reads, checks and splits the interactions.

        Raises:
            DataError: A file is missing, empty or damaged or lacks a column; a row is bad and not to be skipped; a
                split has nobody who likes something and has liked something before.
        """
        readings = [Reading(self.on_bad_row, max_remembered=None) for _ in range(2)]
        catalogue = self._read_items(readings[0])
        columns = self._read_interactions(dict(zip(catalogue, range(len(catalogue)), strict=True)), readings[1])
        users, places, times, ratings = columns
        order = np.argsort(times, kind="stable")
        _, first = np.unique(np.stack([users[order], places[order]]), axis=1, return_index=True)
        kept = order[np.sort(first)]
        splits, names = self._split(times[kept])
        found = Interactions(
            items=tuple(catalogue),
            texts=tuple(catalogue.values()),
            users=users[kept],
            places=places[kept],
            times=times[kept],
            ratings=ratings[kept],
            is_liked=np.ones(len(kept), dtype=bool) if self.min_rating is None else ratings[kept] >= self.min_rating,
            splits=splits,
            names=names,
            facts=self._facts(len(users), len(kept), len(catalogue), readings),
        )
        self._check_splits(found)
        return found

    def _read_items(self, reading: Reading) -> dict[str, str]:
        path = Path(self.items)
        texts: dict[str, str] = {}
        for row in read_rows(path, [self.item_column, *self.text_columns], reading, self.items_format or self.format):
            item = row.values[self.item_column].strip()
            text = ". ".join(cell for column in self.text_columns if (cell := row.values[column].strip()))
            fault = (
                f"{self.item_column!r} is empty, each item needs an id"
                if not item
                else f"item {item!r} has no text in {', '.join(self.text_columns)}"
                if not text
                else f"item {item!r} was there already, an item has one row"
                if item in texts
                else None
            )
            if fault is None:
                texts[item] = text
            else:
                reading.bad_row(DataError(f"{path}, {row.place}: {fault}; correct or remove the row."))
        if len(texts) < 2:
            raise DataError(f"{path} has {len(texts)} items that can be used, but ranking needs at least 2; add some.")
        return texts

    def _read_interactions(self, place_of: dict[str, int], reading: Reading) -> tuple[np.ndarray, ...]:
        """Users, places, times and ratings, in the order of the file."""
        path = Path(self.interactions)
        wanted = [self.user_column, self.item_column, self.time_column]
        wanted += [] if self.rating_column is None else [self.rating_column]
        users: dict[str, int] = {}
        rows: list[tuple[int, int, float, float]] = []
        for row in read_rows(path, wanted, reading, self.format):
            try:
                user, place, time, rating = self._interaction(path, row, place_of)
            except DataError as error:
                reading.bad_row(error)
            else:
                rows.append((users.setdefault(user, len(users)), place, time, rating))
        if not rows:
            raise DataError(f"{path} has no row that can be used, for example {reading.skipped[0]}")
        user_column, item_column, times, ratings = (np.array(column) for column in zip(*rows, strict=True))
        return user_column, item_column, times.astype(np.float64), ratings.astype(np.float64)

    def _interaction(self, path: Path, row: Row, place_of: dict[str, int]) -> tuple[str, int, float, float]:
        place = f"{path}, {row.place}"
        user, item = row.values[self.user_column].strip(), row.values[self.item_column].strip()
        if not user:
            raise DataError(f"{place}: {self.user_column!r} is empty, each row needs one; fill in or remove the row.")
        if item not in place_of:
            raise DataError(
                f"{place}: the item {item!r} has no text in {self.items}; add it there, or set data.on_bad_row=skip."
            )
        time = _read_cell(place, self.time_column, row, _seconds)
        if self.rating_column is None:
            return user, place_of[item], time, math.nan
        return user, place_of[item], time, _read_cell(place, self.rating_column, row, _NUMBER.read)

    def _split(self, times: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """The split of each interaction, and which there are; equal times are in one split.

        Args:
            times: Ascending.
        """
        test = self._moment(times, "test", len(times), math.inf)
        validation = self._moment(times, "validation", int(np.searchsorted(times, test)), test)
        if validation > test:
            raise ConfigError(
                f"data.validation_from={self.validation_from} is not before the moment from which test_fraction="
                f"{self.test_fraction} of the interactions come, {_written(test)}; give test_from too."
            )
        has_split = {
            name: getattr(self, f"{name}_from") is not None or getattr(self, f"{name}_fraction") > 0
            for name in SPLITS[1:]
        }
        splits = (times >= validation).astype(np.int64) + (times >= test)
        return splits, ("train", *(name for name, is_there in has_split.items() if is_there))

    def _moment(self, times: np.ndarray, split: str, end: int, otherwise: float) -> float:
        """When a split begins that ends before the interaction at `end`; `otherwise`: there is no such split."""
        given = self._given_moment(split)
        share = math.floor(getattr(self, f"{split}_fraction") * len(times))
        if given is not None:
            return given
        return float(times[max(end - share, 0)]) if share else otherwise

    def _given_moment(self, split: str) -> float | None:
        value = getattr(self, f"{split}_from")
        try:
            return None if value is None else _seconds(str(value))
        except ValueError as error:
            raise ConfigError(f"{split}_from is {value!r}, it {error}.") from error

    def _facts(self, num_good: int, num_kept: int, num_items: int, readings: Sequence[Reading]) -> SplitFacts:
        items, interactions = readings
        return SplitFacts(
            rows=num_kept,
            unit="interactions",
            file=self.interactions,
            read=num_good + interactions.num_skipped,
            skipped=[*items.skipped, *interactions.skipped],
            num_skipped=interactions.num_skipped,
            left_out={"repeated": num_good - num_kept} if num_good > num_kept else {},
            notes={"items": f"{num_items:,}"}
            | ({"skipped items": f"{items.num_skipped:,}"} if items.num_skipped else {}),
        )

    def _check_splits(self, found: Interactions) -> None:
        likes = found.likes()
        for name in found.names:
            split = SPLITS.index(name)
            is_known = (likes.splits == split) & (likes.num_earlier > 0)
            report = f"{(found.splits == split).sum()} interactions, {(likes.splits == split).sum()} of them likes"
            if not is_known.any():
                raise DataError(
                    f"{self.interactions}: {name} has {report}, but nobody in it liked something and had liked another "
                    "item before; give more rows, or other fractions or moments."
                )


def _read_cell(place: str, column: str, row: Row, read: Callable[[str], float]) -> float:
    cell = row.values[column].strip()
    try:
        return read(cell)
    except ValueError as error:
        raise DataError(f"{place}: {column!r} is {cell!r}, it {error}; correct or remove the row.") from error


def _seconds(cell: str) -> float:
    """Since 1970."""
    seconds = plain_float(cell)
    if seconds is None:
        try:
            when = datetime.fromisoformat(cell)
        except ValueError as error:
            raise ValueError("must be a number of seconds, or a date and time as 2026-01-31T18:00:00") from error
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError("must be a finite number of seconds")
    return seconds


def _written(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
