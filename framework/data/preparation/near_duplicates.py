"""Near-duplicates by MinHash: computes signatures of documents, and finds documents that nearly repeat an earlier one.

The signatures are those of the library datasketch (Broder 1997, "On the resemblance and containment of documents"): the
share of equal entries of two signatures estimates the Jaccard similarity of the documents' sets of shingles. Candidates
come from locality-sensitive hashing in bands (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", 3.4).
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from framework.errors import ConfigError
from framework.random import key, mix

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

SHINGLE_WORDS = 5
SHINGLE_CHARACTERS = 8

_WORD = re.compile(r"[^\W_]+")
# Scripts without spaces between words: Thai and Lao, Burmese, Khmer, Japanese syllables, Chinese characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_BASE = key("near duplicates", "shingle") | 1
_SEED = 1
_SHINGLES_PER_CALL = 4096
# Weights of false positives and false negatives. A missed near-duplicate stays in the corpus; a false candidate only
# costs a comparison.
_WEIGHTS = (0.1, 0.9)


def signatures(texts: Sequence[str], num_permutations: int = 128) -> np.ndarray:
    """Returns MinHash signatures; each depends on its own text only.

    A text is a set of shingles. Words are runs of letters and digits after Unicode's NFKC and case folding, and 5
    consecutive words are a shingle. If more than half of the letters belong to scripts without spaces (Chinese,
    Japanese, Thai, Lao, Khmer, Burmese), 8 consecutive letters are a shingle instead, across word boundaries. A shorter
    text is one shingle. All texts without letters have the same signature.

    Args:
        texts: Texts of documents.
        num_permutations: Number of entries of a signature. The standard error of an estimated similarity s is
            sqrt(s (1 - s) / num_permutations).

    Returns:
        (texts, num_permutations) uint32.

    Raises:
        ConfigError: The library datasketch is not installed.
    """
    minhash_class, _ = _datasketch()
    minhash = minhash_class(num_perm=num_permutations, seed=_SEED, hashfunc=int)
    result = np.empty((len(texts), num_permutations), dtype=np.uint32)
    for row, text in zip(result, texts, strict=True):
        minhash.clear()
        shingles = _shingles(text)
        # Limits memory, because datasketch permutes all hashes of a call at once.
        for first in range(0, len(shingles), _SHINGLES_PER_CALL):
            minhash.update_batch(shingles[first : first + _SHINGLES_PER_CALL].tolist())
        row[:] = minhash.hashvalues
    return result


def repeats(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Finds the documents that are near-duplicates of an earlier kept document; the first of each cluster is kept.

    A document is compared with the kept documents that share a band of its signature. datasketch chooses bands of r
    entries such that few pairs above the threshold share no band; a pair of similarity s shares none with probability
    (1 - s**r)**bands. With 14 bands, this takes about 170 bytes per document in addition to the signatures.

    Args:
        signatures: (documents, permutations) uint32, in the order of the documents.
        threshold: Smallest estimated Jaccard similarity of near-duplicates.

    Returns:
        (documents,) bool, True for near-duplicates.

    Raises:
        ConfigError: No bands fit `threshold` and the number of permutations, or the library datasketch is not
            installed.
    """
    buckets, starts = _buckets(signatures, *bands(threshold, signatures.shape[1]))
    # The kept documents of bucket b are members[starts[b] : starts[b] + num_kept[b]].
    members = np.empty(starts[-1], dtype=np.int32)
    num_kept = np.zeros(len(starts) - 1, dtype=np.int32)
    result = np.zeros(len(signatures), dtype=bool)
    for document in np.flatnonzero((buckets >= 0).any(axis=1)).tolist():
        own = buckets[document]
        own = own[own >= 0]
        firsts, counts = starts[own], num_kept[own]
        kept = [
            members[first : first + count]
            for first, count in zip(firsts.tolist(), counts.tolist(), strict=True)
            if count > 0
        ]
        if kept and _is_near(signatures, document, np.unique(np.concatenate(kept)), threshold):
            result[document] = True
        else:
            members[firsts + counts] = document
            num_kept[own] += 1
    return result


def bands(threshold: float, num_permutations: int) -> tuple[int, int]:
    """Returns (number of bands, entries per band) for a threshold.

    Raises:
        ConfigError: No bands fit `threshold` and `num_permutations`, or the library datasketch is not installed.
    """
    _, lsh_class = _datasketch()
    try:
        lsh = lsh_class(threshold=threshold, num_perm=num_permutations, weights=_WEIGHTS)
    except ValueError as error:
        raise ConfigError(
            f"near_duplicates is {threshold}, for which {num_permutations} permutations give no bands ({error}). "
            "Signatures separate only some similarities. Choose near_duplicates from 0.5 to 0.95, and "
            "num_permutations=128."
        ) from error
    return lsh.b, lsh.r


def _is_near(signatures: np.ndarray, document: int, others: np.ndarray, threshold: float) -> bool:
    num_equal = (signatures[others] == signatures[document]).sum(axis=1)
    return bool(num_equal.max() / signatures.shape[1] >= threshold)


def _buckets(signatures: np.ndarray, num_bands: int, band_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups the documents with equal entries in a band.

    Returns:
        (documents, bands) int32, index of the bucket over all bands; -1 if no other document shares the band.
        (buckets + 1,) int64, offset of each bucket: the sum of the sizes of all earlier ones.
    """
    result = np.full((len(signatures), num_bands), -1, dtype=np.int32)
    sizes = [np.zeros(1, dtype=np.int64)]
    num_buckets = 0
    for band in range(num_bands):
        hashes = _hash_rows(signatures[:, band * band_size : (band + 1) * band_size])
        _, groups, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        shared = counts > 1
        numbers = np.where(shared, np.cumsum(shared) - 1 + num_buckets, -1)
        result[:, band] = numbers[groups]
        sizes.append(counts[shared])
        num_buckets += int(shared.sum())
    return result, np.cumsum(np.concatenate(sizes))


def _shingles(text: str) -> np.ndarray:
    """Returns (shingles,) 32-bit hashes of the shingles of a text, as int64."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    letters = "" if text.isascii() else "".join(words)
    if 2 * len(_UNSPACED.findall(letters)) > len(letters):
        units = np.frombuffer(letters.encode("utf-32-le"), dtype="<u4")
        length = SHINGLE_CHARACTERS
    else:
        units = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.uint32)
        length = SHINGLE_WORDS
    if len(units) > length:
        units = np.lib.stride_tricks.sliding_window_view(units, length)
    return (_hash_rows(np.atleast_2d(units)) >> np.uint64(32)).astype(np.int64)


def _hash_rows(rows: np.ndarray) -> np.ndarray:
    """Returns (rows,) 64-bit hashes of (rows, columns) uint32; the order of the columns matters."""
    state = np.full(len(rows), _BASE, dtype=np.uint64)
    for column in rows.T:
        state = mix(state, column)
    return state


def _datasketch() -> tuple[type["MinHash"], type["MinHashLSH"]]:
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise ConfigError(
            f"the library datasketch cannot be imported ({error}). near_duplicates requires it. Install it with "
            "`pip install -e '.[clean]'`."
        ) from error
    return MinHash, MinHashLSH
