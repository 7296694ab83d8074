"""Items of pictures and texts: of a pair, the picture and then its caption, as two adjacent sequences.

The sequence of a picture is `[CLS]` and its patches. Targets, one per sequence: `queries`, an id of the item's picture,
and `texts`, an id of the picture or of the caption. The record of an item (`FlatSource.records`) is a `PairIds`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from framework import ragged
from framework.data.examples.splits import same_text
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import lay_out
from framework.data.picture_sequences import PictureSequences
from framework.data.planning.collate import FILLER_TOKEN_ID
from framework.data.reading.images import PatchGrid, PictureFile
from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.image_text.data import CaptionedPicture

PICTURE, CAPTION = 0, 1
"""Indices of the sequences of a pair."""

_FIRST_PATCH = 1
"""Index of the first patch in the sequence of a picture, after [CLS]."""


@dataclass(frozen=True, slots=True)
class PairIds:
    """Picture and caption of a pair, for retrieval.

    Attributes:
        picture: Id of the picture; rows with the same file share it.
        caption: Id of the caption; rows with the same text share it.
        row: Row of the data.
    """

    picture: int
    caption: int
    row: CaptionedPicture


def pair_source(
    rows: Sequence[CaptionedPicture], terms: Sequence[str], tokenizer: Tokenizer, grid: PatchGrid, max_length: int
) -> FlatSource:
    """Builds items of a picture and its caption. Each counts 1 in each loss term.

    Args:
        rows: Rows of a split.
        terms: Names of loss terms.
        tokenizer: Tokenizer that supplies ids and special tokens.
        grid: Division of pictures into patches.
        max_length: Maximum number of tokens of a caption, special tokens included.
    """
    pictures: dict[str, int] = {}
    captions: dict[str, int] = {}
    records = [
        PairIds(
            pictures.setdefault(row.picture.path, len(pictures)),
            captions.setdefault(same_text(row.caption), len(captions)),
            row,
        )
        for row in rows
    ]
    queries = np.array([record.picture for record in records]).repeat(2)
    # Ids of captions follow those of pictures, so that no picture equals a caption.
    texts = np.array([(record.picture, len(pictures) + record.caption) for record in records]).reshape(-1)
    targets = {"queries": FlatTarget(queries, "sequences"), "texts": FlatTarget(texts, "sequences")}
    counts = dict.fromkeys(terms, (np.arange(2 * len(rows)) % 2 == PICTURE).astype(np.float64))
    files, captions_ = [row.picture for row in rows], [row.caption for row in rows]
    return _source(files, captions_, tokenizer, grid, max_length, targets, counts, records)


def single_source(
    items: Sequence[PictureFile | str], terms: Sequence[str], tokenizer: Tokenizer, grid: PatchGrid, max_length: int
) -> FlatSource:
    """Builds items of a picture or of a text, for prediction.

    Args:
        items: Pictures and texts.
        terms: Names of loss terms.
        tokenizer: Tokenizer that supplies ids and special tokens.
        grid: Division of pictures into patches.
        max_length: Maximum number of tokens of a text, special tokens included.
    """
    files = [item if isinstance(item, PictureFile) else None for item in items]
    texts = [item if isinstance(item, str) else None for item in items]
    counts = dict.fromkeys(terms, np.zeros(len(items)))
    return _source(files, texts, tokenizer, grid, max_length, {}, counts, ())


def _source(
    files: Sequence[PictureFile | None],
    texts: Sequence[str | None],
    tokenizer: Tokenizer,
    grid: PatchGrid,
    max_length: int,
    targets: dict[str, FlatTarget],
    counts: dict[str, np.ndarray],
    records: Sequence[PairIds],
) -> FlatSource:
    """Builds items of a picture, of a text, or of both in this order."""
    members = np.array([(file is not None, text is not None) for file, text in zip(files, texts, strict=True)])
    is_picture = np.tile([True, False], len(members)).reshape(-1)[members.reshape(-1)]
    distinct: dict[str, int] = {}
    shown = [file for file in files if file is not None]
    pictures = np.full(len(is_picture), -1)
    pictures[is_picture] = [distinct.setdefault(file.path, len(distinct)) for file in shown]
    by_path = {file.path: file for file in shown}
    sequences = PictureSequences(
        [by_path[path] for path in distinct], grid, pictures, np.full(len(is_picture), _FIRST_PATCH)
    )
    layout = lay_out([text for text in texts if text is not None], None, tokenizer, max_length)
    lengths = _FIRST_PATCH + sequences.num_patches
    lengths[~is_picture] = layout.lengths
    starts = ragged.starts(lengths)
    input_ids = np.full(int(lengths.sum()), FILLER_TOKEN_ID, dtype=np.int32)
    input_ids[starts[is_picture]] = tokenizer.cls_id
    input_ids[ragged.ranges(starts[~is_picture], layout.lengths)] = layout.input_ids
    return FlatSource(
        input_ids,
        lengths,
        targets,
        counts,
        max(max_length, int(lengths.max(initial=1))),
        item_sizes=members.sum(axis=1),
        records=records,
        cutting=layout.cutting,
        pictures=sequences,
    )
