"""The first pass over a corpus, where one is wanted: finds documents that overlap evaluation texts or nearly repeat.

Its result is one byte a document, kept in a file, so that a later start need not look again.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from framework.data.preparation.corpus import EXCLUDED, NEAR_DUPLICATE, Cleaning, Corpus
from framework.data.preparation.exclusion import ExclusionIndex
from framework.data.preparation.near_duplicates import repeats, signatures
from framework.data.preparation.pool import work_in_order

FATES_FILE, SIGNATURES_FILE = "fates.npy", "signatures"


class Screening:
    """Looks at texts one by one.

    Args:
        exclusion: What must not be in the corpus; None: nothing.
        num_permutations: Hashes of a signature; None: no signatures are wanted.
    """

    def __init__(self, exclusion: ExclusionIndex | None, num_permutations: int | None) -> None:
        self._exclusion = exclusion
        self._num_permutations = num_permutations

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Screens texts.

        Returns:
            (texts,) bool, True where a text overlaps; (other texts, permutations) uint32, signatures of the others.
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
    """What becomes of each document (see `Corpus.batches`); None where the settings drop none.

    Args:
        corpus: Read once, unless the folder holds the result.
        exclusion: What must not be in the corpus; None: nothing.
        folder: Keeps the result, and the signatures while they are needed.
        num_workers: See `work_in_order`.

    Raises:
        DataError: See `Source.read`.
        OSError: The folder cannot be written.
        BrokenProcessPool: See `work_in_order`.
    """
    cleaning = corpus.cleaning
    if exclusion is None and cleaning.near_duplicates is None:
        return None
    path = folder / FATES_FILE
    if not path.is_file():
        fresh = path.with_name(path.name + ".new")
        with fresh.open("wb") as file:
            np.save(file, _fates(corpus, cleaning, exclusion, folder / SIGNATURES_FILE, num_workers))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    fates: np.ndarray = np.load(path, mmap_mode="r")
    return fates


def _fates(
    corpus: Corpus, cleaning: Cleaning, exclusion: ExclusionIndex | None, scratch: Path, num_workers: int | None
) -> np.ndarray:
    excluded, others = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    make_work = partial(Screening, exclusion, None if cleaning.near_duplicates is None else cleaning.num_permutations)
    with scratch.open("wb") as file:
        for batch, (overlaps, found) in work_in_order(make_work, corpus.batches("cleaning"), num_workers):
            excluded.append(batch.ordinals[overlaps])
            others.append(batch.ordinals[~overlaps])
            file.write(found.tobytes())
    fates = np.zeros(sum(tally.read for tally in corpus.tallies), dtype=np.uint8)
    fates[np.concatenate(excluded)] = EXCLUDED
    remaining = np.concatenate(others)
    if cleaning.near_duplicates is not None and len(remaining):
        shape = (len(remaining), cleaning.num_permutations)
        # On the disk, since signatures may take more room than there is memory.
        mapped = np.memmap(scratch, dtype=np.uint32, mode="r", shape=shape)
        fates[remaining[repeats(mapped, cleaning.near_duplicates)]] = NEAR_DUPLICATE
    scratch.unlink()
    return fates
