"""First, optional pass over a corpus: finds documents that overlap evaluation texts, and near-duplicates.

A file keeps the result, one byte per document, so that a resumed preparation does not repeat the pass.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from framework.data.preparation.corpus import EXCLUDED, NEAR_DUPLICATE, Cleaning, Corpus
from framework.data.preparation.exclusion import ExclusionIndex
from framework.data.preparation.near_duplicates import repeats, signatures
from framework.data.preparation.pool import work_in_order
from framework.files import replacing

FATES_FILE, SIGNATURES_FILE = "fates.npy", "signatures"


class Screening:
    """Checks texts against evaluation texts and computes their signatures.

    Args:
        exclusion: Index of evaluation texts; None: no check.
        num_permutations: Number of hashes of a signature; None: compute no signatures.
    """

    def __init__(self, exclusion: ExclusionIndex | None, num_permutations: int | None) -> None:
        self._exclusion = exclusion
        self._num_permutations = num_permutations

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Screens texts.

        Returns:
            (texts,) bool, True for texts that overlap an evaluation text.
            (other texts, permutations) uint32, signatures of the other texts.
        """
        overlaps = np.zeros(len(texts), dtype=bool)
        if self._exclusion is not None:
            overlaps = self._exclusion.overlaps(texts)
        others = [text for text, overlap in zip(texts, overlaps, strict=True) if not overlap]
        if self._num_permutations is None:
            return overlaps, np.zeros((len(others), 0), dtype=np.uint32)
        return overlaps, signatures(others, self._num_permutations)


def screen(
    corpus: Corpus, exclusion: ExclusionIndex | None, folder: Path, num_workers: int | None
) -> np.ndarray | None:
    """Returns the fate of each document (see `Corpus.batches`); None if the settings drop no documents.

    Args:
        corpus: Corpus, which is read once unless the folder holds the result.
        exclusion: Index of evaluation texts; None: no check.
        folder: Folder for the result and, temporarily, for the signatures.
        num_workers: Number of processes as in `work_in_order`.

    Raises:
        DataError: A source cannot be read, as for `Source.read`.
        OSError: The folder cannot be written.
        BrokenProcessPool: A worker was killed, as for `work_in_order`.
    """
    cleaning = corpus.cleaning
    if exclusion is None and cleaning.near_duplicates is None:
        return None
    path = folder / FATES_FILE
    if not path.is_file():
        with replacing(path) as file:
            np.save(file, _fates(corpus, cleaning, exclusion, folder / SIGNATURES_FILE, num_workers))
    fates: np.ndarray = np.load(path, mmap_mode="r")
    return fates


def _fates(
    corpus: Corpus, cleaning: Cleaning, exclusion: ExclusionIndex | None, scratch: Path, num_workers: int | None
) -> np.ndarray:
    excluded, others = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    make_work = partial(Screening, exclusion, None if cleaning.near_duplicates is None else cleaning.num_permutations)
    with scratch.open("wb") as file:
        for batch, (overlaps, rows) in work_in_order(make_work, corpus.batches("cleaning"), num_workers):
            excluded.append(batch.ordinals[overlaps])
            others.append(batch.ordinals[~overlaps])
            file.write(rows.tobytes())
    fates = np.zeros(sum(tally.read for tally in corpus.tallies), dtype=np.uint8)
    fates[np.concatenate(excluded)] = EXCLUDED
    remaining = np.concatenate(others)
    if cleaning.near_duplicates is not None and len(remaining):
        shape = (len(remaining), cleaning.num_permutations)
        # Signatures stay on disk because they can be larger than memory.
        mapped = np.memmap(scratch, dtype=np.uint32, mode="r", shape=shape)
        fates[remaining[repeats(mapped, cleaning.near_duplicates)]] = NEAR_DUPLICATE
    scratch.unlink()
    return fates
