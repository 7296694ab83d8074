"""Catalogue of recommendable items, and its file in a run folder and in an export.

With that file, a run or export recommends without the training tables. Users may edit it: a new item needs only a text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.data.examples.answers import number, read_cell
from framework.data.reading.rows import read_rows
from framework.errors import DataError
from framework.tasks.recommendation.data import Interactions

CATALOGUE_FILE = "catalogue.jsonl"
_COLUMNS = ("item", "text", "likes")
_NUMBER = number()


@dataclass(frozen=True)
class Catalogue:
    """Recommendable items.

    Attributes:
        items: Unique item ids.
        texts: Text of each item.
        num_likes: (items,) likes in the training split.
    """

    items: Sequence[str]
    texts: Sequence[str]
    num_likes: np.ndarray

    @property
    def log_shares(self) -> np.ndarray:
        """Returns (items,) logarithms of the shares of the likes, with 1 added to each count so that none is 0."""
        counts = self.num_likes + 1.0
        return np.log(counts / counts.sum())

    def to_jsonl(self) -> str:
        """Returns the content of the file, one item per line."""
        rows = zip(self.items, self.texts, self.num_likes.tolist(), strict=True)
        return "".join(json.dumps(dict(zip(_COLUMNS, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)


def build_catalogue(data: Interactions) -> Catalogue:
    """Builds the catalogue. It counts only the likes of the training split."""
    likes = data.item_indices[data.is_liked & (data.splits == 0)]
    return Catalogue(data.items, data.texts, np.bincount(likes, minlength=len(data.items)))


def read_catalogue(path: Path) -> Catalogue:
    """Reads the catalogue from a file.

    Raises:
        DataError: The file is missing or damaged, an item occurs twice or has no text, or its likes are not a number of
            at least 0.
    """
    texts: dict[str, str] = {}
    likes: list[float] = []
    for row in read_rows(path, _COLUMNS):
        item, text, cell = (row.values[column] for column in _COLUMNS)
        if item in texts or not text.strip():
            fault = "occurs twice" if item in texts else "has no text"
            raise DataError(
                f"{path}, {row.location}: item {item!r} {fault}. Each item needs one row with a text. Correct or "
                "remove the row."
            )
        likes.append(read_cell(f"{path}, {row.location}", "likes", cell, _NUMBER.read))
        if likes[-1] < 0:
            raise DataError(f"{path}, {row.location}: 'likes' is {cell}. It must be at least 0. Correct the row.")
        texts[item] = text
    return Catalogue(tuple(texts), tuple(texts.values()), np.array(likes))
