"""Timed interactions of users with items, and the texts of the items; validated, and split by time.

Two moments, the same for all users, define the splits: interactions before the first are training, those between the
two are validation, later ones are test. So no data that is trained on, counted or averaged is later than any data that
is evaluated (Ji et al. 2023, "A critical study on data leakage in recommender system offline evaluation", ACM TOIS 41,
section 5).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from framework.data.examples.answers import number, read_cell, require_text
from framework.data.examples.fractions import check_fractions
from framework.data.facts import SplitFacts
from framework.data.reading.files import Reading
from framework.data.reading.header import plain_float
from framework.data.reading.rows import Row, read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")
Moment = str | float
"""Seconds since 1970, or a date in ISO 8601. A date without a time zone is UTC."""

_NUMBER = number()


@dataclass(frozen=True)
class Interactions:
    """Interactions of an InteractionData. Arrays are (interactions,), sorted by time, then by row in the file.

    Attributes:
        items: Item ids of the catalogue, in the order of its file.
        texts: Text of each item.
        users: Index of the user, in order of first occurrence in the file.
        item_indices: Index of the item in the catalogue.
        times: Times in seconds.
        ratings: Ratings. NaN if there are none.
        is_liked: True if the interaction means that the user likes the item.
        splits: Index of the split in SPLITS.
        names: Names of the existing splits.
        facts: Numbers of rows read, skipped and left out, over all splits.
    """

    items: tuple[str, ...]
    texts: tuple[str, ...]
    users: np.ndarray
    item_indices: np.ndarray
    times: np.ndarray
    ratings: np.ndarray
    is_liked: np.ndarray
    splits: np.ndarray
    names: tuple[str, ...]
    facts: SplitFacts

    def likes(self) -> "Likes":
        """Selects the likes and sorts them by user."""
        chosen = np.flatnonzero(self.is_liked)
        chosen = chosen[self.users[chosen].argsort(kind="stable")]
        users, times = self.users[chosen], self.times[chosen]
        index = np.arange(len(chosen))
        is_new_user = np.diff(users, prepend=-1) != 0
        is_new_moment = is_new_user | (np.diff(times, prepend=-np.inf) != 0)
        starts = np.maximum.accumulate(np.where(is_new_user, index, 0))
        num_earlier = np.maximum.accumulate(np.where(is_new_moment, index, 0)) - starts
        return Likes(users, self.item_indices[chosen], times, self.splits[chosen], starts, num_earlier)


@dataclass(frozen=True)
class Likes:
    """Likes of all users. Arrays are (likes,), sorted by user, then time, then row in the file.

    Attributes:
        users: Index of the user.
        item_indices: Index of the item in the catalogue.
        times: Times in seconds.
        splits: Index of the split in SPLITS.
        starts: Index of the user's first like.
        num_earlier: Number of the user's strictly earlier likes. They begin at `starts`.
    """

    users: np.ndarray
    item_indices: np.ndarray
    times: np.ndarray
    splits: np.ndarray
    starts: np.ndarray
    num_earlier: np.ndarray


@dataclass(frozen=True)
class InteractionData:
    """Two tables that `framework.data.reading.rows` reads: interactions of users with items, and texts of items.

    If a user has several interactions with an item, only the first in time counts.

    Attributes:
        interactions: File of the interactions, one per row.
        items: File of the catalogue, one item per row. Its `item_column` has the item ids.
        user_column: Column (JSONL: key) of the user.
        item_column: Column of the item, in both files.
        time_column: Column of the time (`Moment`).
        rating_column: Column of the rating, a number. None: there are no ratings.
        min_rating: Minimum rating of a like. Items with a lower rating count as seen but not liked. None: every
            interaction is a like.
        text_columns: Columns of the catalogue. Their cells, without empty ones, are joined to the text of an item.
        validation_fraction: Share of the interactions in validation. 0: no validation split.
        test_fraction: Share of the interactions in test. 0: no test split.
        validation_from: Start of validation. It overrides `validation_fraction`.
        test_from: Start of test. It overrides `test_fraction`.
        format: Format of the files. None: the defaults of TableFormat.
        items_format: Format of the catalogue. None: the same as `format`.
        on_bad_row: Handling of a broken row, an item without a text or with a second row, and an interaction with an
            empty user, an item that is not in the catalogue, or an unreadable time or rating. "error" stops, "skip"
            drops and counts the row.

    Raises:
        ConfigError: A fraction is out of range, a moment is not a number or a date, `validation_from` is not before
            `test_from`, `min_rating` is set without `rating_column`, or `text_columns` is empty or names a column
            twice.
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
                f"data.min_rating is {self.min_rating}, but rating_column is null. A minimum needs ratings. Set "
                "data.rating_column, or set data.min_rating to null."
            )
        if not 0 < len(self.text_columns) == len(set(self.text_columns)):
            raise ConfigError(
                f"data.text_columns is {self.text_columns}. It must name at least one column, and no column twice. "
                "Correct the list."
            )
        first, second = map(self._given_moment, SPLITS[1:])
        if first is not None and second is not None and first >= second:
            raise ConfigError(
                f"data.validation_from={self.validation_from} is not before test_from={self.test_from}. Validation "
                "must begin before test. Swap or change them."
            )

    def load(self) -> Interactions:
        """Reads, checks and splits the interactions.

        Raises:
            DataError: A file is missing, empty or damaged, or lacks a column; a row is bad and `on_bad_row` is "error";
                or a split has no user with a like and an earlier like.
        """
        readings = [Reading(self.on_bad_row, max_remembered=None) for _ in range(2)]
        catalogue = self._read_items(readings[0])
        columns = self._read_interactions(dict(zip(catalogue, range(len(catalogue)), strict=True)), readings[1])
        users, item_indices, times, ratings = columns
        order = np.argsort(times, kind="stable")
        _, first = np.unique(np.stack([users[order], item_indices[order]]), axis=1, return_index=True)
        kept = order[np.sort(first)]
        splits, names = self._split(times[kept])
        interactions = Interactions(
            items=tuple(catalogue),
            texts=tuple(catalogue.values()),
            users=users[kept],
            item_indices=item_indices[kept],
            times=times[kept],
            ratings=ratings[kept],
            is_liked=np.ones(len(kept), dtype=bool) if self.min_rating is None else ratings[kept] >= self.min_rating,
            splits=splits,
            names=names,
            facts=self._facts(len(users), len(kept), len(catalogue), readings),
        )
        self._check_splits(interactions)
        return interactions

    def _read_items(self, reading: Reading) -> dict[str, str]:
        path = Path(self.items)
        texts: dict[str, str] = {}
        for row in read_rows(path, [self.item_column, *self.text_columns], reading, self.items_format or self.format):
            item = row.values[self.item_column].strip()
            text = ". ".join(cell for column in self.text_columns if (cell := row.values[column].strip()))
            fault = (
                f"{self.item_column!r} is empty. Each item needs an id"
                if not item
                else f"item {item!r} has no text in {', '.join(self.text_columns)}. Each item needs a text"
                if not text
                else f"item {item!r} occurs twice. Each item must have one row"
                if item in texts
                else None
            )
            if fault is None:
                texts[item] = text
            else:
                reading.bad_row(DataError(f"{path}, {row.location}: {fault}. Correct or remove the row."))
        if len(texts) < 2:
            raise DataError(f"{path} has {len(texts)} valid items. Ranking needs at least 2. Add items.")
        return texts

    def _read_interactions(self, index_of: dict[str, int], reading: Reading) -> tuple[np.ndarray, ...]:
        """Returns user indices, item indices, times and ratings, in the order of the file."""
        path = Path(self.interactions)
        columns = [self.user_column, self.item_column, self.time_column]
        columns += [] if self.rating_column is None else [self.rating_column]
        users: dict[str, int] = {}
        rows: list[tuple[int, int, float, float]] = []
        for row in read_rows(path, columns, reading, self.format):
            with reading.handling_bad_row():
                user, item_index, time, rating = self._interaction(path, row, index_of)
                rows.append((users.setdefault(user, len(users)), item_index, time, rating))
        if not rows:
            raise DataError(f"{path} has no usable row. The first error: {reading.skipped[0]}")
        user_column, item_column, times, ratings = (np.array(column) for column in zip(*rows, strict=True))
        return user_column, item_column, times.astype(np.float64), ratings.astype(np.float64)

    def _interaction(self, path: Path, row: Row, index_of: dict[str, int]) -> tuple[str, int, float, float]:
        location = f"{path}, {row.location}"
        user = require_text(location, self.user_column, row.values[self.user_column]).strip()
        item = row.values[self.item_column].strip()
        if item not in index_of:
            raise DataError(
                f"{location}: the item {item!r} has no text in {self.items}. Each item needs a text. Add it there, or "
                "set data.on_bad_row=skip."
            )
        time = read_cell(location, self.time_column, row.values[self.time_column], _seconds)
        if self.rating_column is None:
            return user, index_of[item], time, math.nan
        rating = read_cell(location, self.rating_column, row.values[self.rating_column], _NUMBER.read)
        return user, index_of[item], time, rating

    def _split(self, times: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns the split of each interaction and the names of the splits. Equal times are in one split.

        Args:
            times: Ascending times in seconds.
        """
        test = self._moment(times, "test", len(times), math.inf)
        validation = self._moment(times, "validation", int(np.searchsorted(times, test)), test)
        if validation > test:
            raise ConfigError(
                f"data.validation_from={self.validation_from} is not before {_iso_time(test)}, where "
                f"test_fraction={self.test_fraction} begins test. Validation must begin before test. Set "
                "data.test_from too."
            )
        has_split = {
            name: getattr(self, f"{name}_from") is not None or getattr(self, f"{name}_fraction") > 0
            for name in SPLITS[1:]
        }
        splits = (times >= validation).astype(np.int64) + (times >= test)
        return splits, ("train", *(name for name, exists in has_split.items() if exists))

    def _moment(self, times: np.ndarray, split: str, end: int, otherwise: float) -> float:
        """Returns the start of a split that ends before the interaction `end`, or `otherwise` if it does not exist."""
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
            raise ConfigError(f"data.{split}_from is {value!r}. It {error}. Correct it.") from error

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

    def _check_splits(self, interactions: Interactions) -> None:
        likes = interactions.likes()
        for name in interactions.names:
            split = SPLITS.index(name)
            has_history = (likes.splits == split) & (likes.num_earlier > 0)
            num_interactions, num_likes = (interactions.splits == split).sum(), (likes.splits == split).sum()
            if not has_history.any():
                raise DataError(
                    f"{self.interactions}: {name} has {num_interactions} interactions, {num_likes} of them likes, but "
                    "no like of a user with an earlier like. Each split needs one. Add rows, or change the fractions "
                    "or moments."
                )


def _seconds(cell: str) -> float:
    """Converts a number or a date to seconds since 1970."""
    seconds = plain_float(cell)
    if seconds is None:
        try:
            when = datetime.fromisoformat(cell)
        except ValueError as error:
            raise ValueError("must be a number of seconds, or a date and time like 2026-01-31T18:00:00") from error
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ValueError("must be a finite number of seconds")
    return seconds


def _iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
