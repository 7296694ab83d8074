"""What can be recommended; and the file of it that lies beside a run and in its export.

With the file both recommend without the tables of the training. It may be edited: new items need only a text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.data.examples.answers import number
from framework.data.reading.rows import read_rows
from framework.errors import DataError
from framework.tasks.recommendation.data import Interactions

CATALOGUE_FILE = "catalogue.jsonl"
_COLUMNS = ("item", "text", "likes")
_NUMBER = number()


@dataclass(frozen=True)
class Catalogue:
    """What can be recommended.

    Attributes:
        items: Ids, all different.
        texts: Of each.
        num_likes: (items,) of the training.
    """

    items: Sequence[str]
    texts: Sequence[str]
    num_likes: np.ndarray

    @property
    def log_shares(self) -> np.ndarray:
        """(items,) logarithm of each item's share of the likes, as if each had one more, so that new ones have one."""
        counts = self.num_likes + 1.0
        return np.log(counts / counts.sum())

    def written(self) -> str:
        """The file's content: an item a line."""
        rows = zip(self.items, self.texts, self.num_likes.tolist(), strict=True)
        return "".join(json.dumps(dict(zip(_COLUMNS, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)


def build_catalogue(data: Interactions) -> Catalogue:
    """The catalogue with the likes of the training alone."""
    likes = data.places[data.is_liked & (data.splits == 0)]
    return Catalogue(data.items, data.texts, np.bincount(likes, minlength=len(data.items)))


def read_catalogue(path: Path) -> Catalogue:
    """The catalogue of a file.

    Raises:
        DataError: It is missing or damaged, an item comes twice or has no text, or its likes are no number from 0 on.
    """
    texts: dict[str, str] = {}
    likes: list[float] = []
    for row in read_rows(path, _COLUMNS):
        item, text, cell = (row.values[column] for column in _COLUMNS)
        if item in texts or not text.strip():
            fault = "comes twice" if item in texts else "has no text"
            raise DataError(f"{path}, {row.place}: item {item!r} {fault}; correct or remove the row.")
        try:
            likes.append(_NUMBER.read(cell))
        except ValueError as error:
            raise DataError(f"{path}, {row.place}: 'likes' is {cell!r}, it {error}; correct the row.") from error
        if likes[-1] < 0:
            raise DataError(f"{path}, {row.place}: 'likes' is {cell}, it must be at least 0; correct the row.")
        texts[item] = text
    return Catalogue(tuple(texts), tuple(texts.values()), np.array(likes))
