"""Sequences of pictures, with or without a text in front, and the targets of a problem."""

from collections.abc import Sequence

import numpy as np

from framework import ragged
from framework.data.facts import NO_CUTTING
from framework.data.layout import Layout
from framework.data.picture_sequences import PictureSequences, picture_sides
from framework.data.reading.images import PatchGrid, PictureFile


def lay_out_pictures(
    files: Sequence[PictureFile], texts: Layout | None, class_id: int | None, grid: PatchGrid
) -> tuple[Layout, PictureSequences]:
    """Lays out one picture per sequence: `[CLS]` and the patches, or the text and the patches as segment 1.

    Args:
        files: Picture of each sequence.
        texts: Text of each sequence with its special tokens; None: there are no texts.
        class_id: Id of the token in front of a picture without a text; None: there is no such token.
        grid: Division of the pictures into patches.

    Returns:
        Layout and pictures of the sequences. The tokens of patches have the id of padding in the layout, 0.
    """
    patches = picture_sides(files, grid).prod(axis=1)
    if texts is None:
        first = np.full(len(files), 0 if class_id is None else 1)
        own = np.full(int(first.sum()), class_id or 0, dtype=np.int32)
    else:
        first, own = texts.lengths, texts.input_ids
    lengths = first + patches
    is_patch = ragged.offsets_within(lengths) >= np.repeat(first, lengths)
    input_ids = np.zeros(len(is_patch), dtype=np.int32)
    input_ids[~is_patch] = own
    distinct = list(dict.fromkeys(files))
    index = {file: number for number, file in enumerate(distinct)}
    pictures = PictureSequences(distinct, grid, np.array([index[file] for file in files], dtype=np.int64), first)
    cutting = NO_CUTTING if texts is None else texts.cutting
    return Layout(input_ids, lengths, None if texts is None else is_patch, cutting), pictures
