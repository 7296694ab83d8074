"""Pictures of the sequences of a FlatSource. Their patches are decoded when a micro-batch is built."""

import hashlib
from collections.abc import Sequence

import numpy as np

from framework import ragged
from framework.data.planning.collate import Patches
from framework.data.reading.images import PatchGrid, PictureFile, read_patches


class PictureSequences:
    """Pictures by sequence; a sequence has at most one picture, whose patches are adjacent tokens.

    Args:
        files: Distinct pictures.
        grid: Division into patches.
        pictures: (sequences,) index of the picture of each sequence in `files`; -1: none.
        first_tokens: (sequences,) index of the first token within its sequence that stands for a patch.

    Attributes:
        files: Pictures as given.
        grid: Division as given.
        pictures: Indices as given.
    """

    def __init__(
        self, files: Sequence[PictureFile], grid: PatchGrid, pictures: np.ndarray, first_tokens: np.ndarray
    ) -> None:
        self.files = files
        self.grid = grid
        self.pictures = np.asarray(pictures, dtype=np.int64)
        self._first_tokens = np.asarray(first_tokens, dtype=np.int64)
        self._sides = picture_sides(files, grid)

    @property
    def fingerprint(self) -> bytes:
        """Returns a hash of names, sizes and division; pixels are not read."""
        digest = hashlib.blake2b(digest_size=16)
        for file in self.files:
            digest.update(f"{file.name}\0{file.num_bytes}\0{file.width}\0{file.height}\0".encode())
        digest.update(repr(self.grid).encode() + self.pictures.tobytes() + self._first_tokens.tobytes())
        return digest.digest()

    @property
    def num_patches(self) -> np.ndarray:
        """Returns (sequences,) int64, the patches of each sequence; 0 without a picture."""
        by_file = np.append(self._sides.prod(axis=1), 0)
        return np.asarray(by_file[self.pictures], dtype=np.int64)

    def patches(self, sequences: np.ndarray, lengths: np.ndarray) -> Patches:
        """Decodes the pictures of some sequences.

        Args:
            sequences: (sequences,) indices of the sequences of a micro-batch, in order.
            lengths: (sequences,) number of tokens of each.

        Raises:
            DataError: A picture is damaged.
        """
        pictures = self.pictures[sequences]
        has_picture = pictures >= 0
        shown = pictures[has_picture]
        sides = self._sides[shown]
        counts = sides.prod(axis=1)
        starts = (ragged.starts(lengths) + self._first_tokens[sequences])[has_picture]
        within = ragged.offsets_within(counts)
        columns = np.repeat(sides[:, 1], counts)
        values = [
            read_patches(self.files[picture], rows, columns_, self.grid.patch_size)
            for picture, (rows, columns_) in zip(shown.tolist(), sides.tolist(), strict=True)
        ]
        return Patches(
            np.concatenate([np.zeros((0, self.grid.patch_dim), dtype=np.uint8), *values]),
            ragged.ranges(starts, counts),
            np.stack([within // columns, within % columns], axis=1),
        )


def picture_sides(files: Sequence[PictureFile], grid: PatchGrid) -> np.ndarray:
    """Returns (pictures, 2) int64, the rows and columns of patches of each picture."""
    sides = [grid.of(file.width, file.height) for file in files]
    return np.array(sides, dtype=np.int64).reshape(-1, 2)
