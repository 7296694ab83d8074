"""Finds documents that share a long run of letters with an evaluation text, so that they are excluded from training.

A text is reduced to its letters and digits (`normalise`), so that tokenisation, punctuation, case and spaces make no
difference. Documents are then searched for every window of `ngram_bytes` bytes of the evaluation texts, at every
offset, with a rolling hash: the polynomial hash of Karp and Rabin (1987, "Efficient randomized pattern-matching
algorithms") modulo 2**64, with a random value for each byte. No shared window is missed; two different windows have the
same hash about once in 2**64 comparisons.
"""

import csv
import functools
import hashlib
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from framework.data.reading.files import COMPRESSIONS, Reading, decode_line, find_files, kind_of, raw_lines
from framework.data.reading.rows import record_batches
from framework.data.reading.table_format import TableFormat
from framework.data.reading.table_kind import detect_kind
from framework.errors import ConfigError, DataError
from framework.files import parse_json
from framework.random import key, mix

MIN_BYTES = 20
"""Smallest size of an evaluation text; shorter ones, such as labels, names or "a good film", are ignored."""

_BLOCK = 1 << 15
"""Number of positions that are hashed at once; small enough for the processor's cache."""

_ALPHANUMERIC_ASCII = bytes(byte for byte in range(128) if chr(byte).isalnum())
_LOWER_ASCII = bytes(range(256)).lower()
_OTHER_ASCII = bytes(byte for byte in range(128) if byte not in _ALPHANUMERIC_ASCII)

_VALUES = mix(key("exclusion", "value of a byte"), np.arange(256))
# The base is 5 modulo 8, so its powers repeat only after 2**62 steps.
_BASE = (key("exclusion", "base") & ~7) | 5


def normalise(text: str) -> bytes:
    """Returns the letters and digits of a text as UTF-8, after Unicode's NFKC and case folding."""
    if text.isascii():
        return text.encode().translate(_LOWER_ASCII, _OTHER_ASCII)
    text = unicodedata.normalize("NFKC", text).casefold()
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return points[_alphanumeric_points()[points]].tobytes().decode("utf-32-le").encode()


@dataclass(frozen=True, eq=False)
class HashSet:
    """Set of 64-bit hashes with vectorised lookup.

    Attributes:
        hashes: (hashes,) uint64, ascending, without duplicates.
        bitmap: uint8, one bit per possible prefix (the upper bits) of a hash, set if a hash has this prefix. At most 1
            bit in 32 is set, so most absent hashes are rejected without a search.
    """

    hashes: np.ndarray
    bitmap: np.ndarray

    @classmethod
    def of(cls, hashes: Iterable[np.ndarray]) -> "HashSet":
        """Returns the set of all hashes in these arrays."""
        unique = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *hashes]))
        num_bits = max(8, (32 * len(unique) - 1).bit_length())
        bits = np.zeros(2**num_bits, dtype=bool)
        bits[unique >> np.uint64(64 - num_bits)] = True
        return cls(unique, np.packbits(bits, bitorder="little"))

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Returns the ascending indices of the hashes that are in the set."""
        prefixes = hashes >> np.uint64(64 - (8 * len(self.bitmap) - 1).bit_length())
        bits = self.bitmap[prefixes >> np.uint64(3)] >> (prefixes & np.uint64(7)).astype(np.uint8)
        maybe = np.flatnonzero(bits & 1)
        candidates = hashes[maybe]
        nearest = np.minimum(np.searchsorted(self.hashes, candidates), len(self.hashes) - 1)
        return maybe[self.hashes[nearest] == candidates]


@dataclass(frozen=True, eq=False)
class ExclusionIndex:
    """Hashes of evaluation texts; small enough to be sent to other processes.

    Attributes:
        ngram_bytes: Length of a window, in bytes of normalised text.
        windows: Hashes of all windows of the long texts, which have at least `ngram_bytes` bytes.
        beginnings: Hashes of the first MIN_BYTES bytes of the short texts, which have at least MIN_BYTES bytes.
        shorts: Hashes of the whole short texts.
        short_lengths: (lengths,) int64, the different lengths of the short texts, in bytes.
        num_texts: Number of different evaluation texts that are searched for.
        num_too_short: Number of different texts that are ignored because they have fewer than MIN_BYTES bytes.
    """

    ngram_bytes: int
    windows: HashSet
    beginnings: HashSet
    shorts: HashSet
    short_lengths: np.ndarray
    num_texts: int
    num_too_short: int

    @classmethod
    def from_files(cls, patterns: str | Sequence[str], ngram_bytes: int = 48) -> "ExclusionIndex":
        """Reads evaluation files with any column names (`evaluation_texts`).

        Args:
            patterns: Paths and globs.
            ngram_bytes: Length of a window; 48 bytes are about 10 English words or 16 Chinese characters.

        Raises:
            ConfigError: `ngram_bytes` is smaller than MIN_BYTES.
            DataError: A pattern matches no file, or a file cannot be read, is broken, or has no text of at least
                MIN_BYTES bytes.
        """
        if ngram_bytes < MIN_BYTES:
            raise ConfigError(
                f"exclude_ngram_bytes is {ngram_bytes}. Common phrases are as long as such a window. Use at least "
                f"{MIN_BYTES}."
            )
        texts: set[bytes] = set()
        for path in find_files(patterns):
            own = {normalise(text) for text in evaluation_texts(path)} - {b""}
            if not any(len(text) >= MIN_BYTES for text in own):
                raise DataError(
                    f"{path} has no text with {MIN_BYTES} bytes of letters and digits. Shorter texts are not searched "
                    "for. Correct the path, or leave the file out."
                )
            texts |= own
        longs = sorted(text for text in texts if len(text) >= ngram_bytes)
        shorts = sorted(text for text in texts if MIN_BYTES <= len(text) < ngram_bytes)
        lengths = sorted({len(text) for text in shorts})
        return cls(
            ngram_bytes,
            windows=HashSet.of(_window_hashes(longs, ngram_bytes)),
            beginnings=HashSet.of(_window_hashes([text[:MIN_BYTES] for text in shorts], MIN_BYTES)),
            shorts=HashSet.of(
                hashes
                for length in lengths
                for hashes in _window_hashes([text for text in shorts if len(text) == length], length)
            ),
            short_lengths=np.array(lengths, dtype=np.int64),
            num_texts=len(longs) + len(shorts),
            num_too_short=len(texts) - len(longs) - len(shorts),
        )

    @property
    def fingerprint(self) -> str:
        """Returns a hash that differs between indexes that find different documents."""
        digest = hashlib.blake2b(b"exclusion 1", digest_size=16)
        for part in (self.windows, self.shorts):
            digest.update(part.hashes.astype("<u8").tobytes())
            digest.update(b"|")
        return digest.hexdigest()

    def overlaps(self, texts: Sequence[str]) -> np.ndarray:
        """Finds documents that share a window, or a whole short text, with an evaluation text.

        Returns:
            (texts,) bool, True for such documents.
        """
        result = np.zeros(len(texts), dtype=bool)
        joined, ends = _join([normalise(text) for text in texts])
        for positions, length in self._find(joined):
            owners = np.searchsorted(ends, positions, side="right")
            # Texts are joined end to end: a match that crosses the end of a text belongs to no text.
            result[owners[positions + length <= ends[owners]]] = True
        return result

    def _find(self, joined: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Yields (positions, length) of matches, including matches that cross the end of a text."""
        for first, sums, inverses in _blocks(joined, self.ngram_bytes):
            matches = self.windows.find(_hashes(sums, inverses, self.ngram_bytes))
            yield first + matches, self.ngram_bytes
            if len(self.short_lengths) == 0:
                continue
            beginnings = self.beginnings.find(_hashes(sums, inverses, MIN_BYTES))
            for length in self.short_lengths.tolist():
                starts = beginnings[beginnings + length < len(sums)]
                matches = self.shorts.find((sums[starts + length] - sums[starts]) * inverses[starts])
                yield first + starts[matches], length


def evaluation_texts(path: Path) -> Iterator[str]:
    """Streams all texts of a file, including short fields such as labels.

    - Plain text: each line.
    - CSV and TSV: each field of each row, with or without a header. If quoting gives rows with different numbers of
      fields, the fields without quoting are added.
    - JSON and JSONL: each string.
    - Parquet and Arrow: each string in any column.

    All files except Parquet and Arrow can be compressed with gzip or zstd.

    Raises:
        DataError: The suffix is unknown, or the file cannot be read, is empty, broken, or not UTF-8.
    """
    reader = {
        ".txt": _lines,
        ".csv": _table_texts,
        ".tsv": _table_texts,
        ".json": _json_texts,
        ".jsonl": _json_texts,
        ".parquet": _arrow_texts,
        ".arrow": _arrow_texts,
    }.get(kind_of(path))
    if reader is None or (reader is _arrow_texts and path.suffix.lower() in COMPRESSIONS):
        raise DataError(
            f"{path} has no suffix of an evaluation file. The suffix determines the format: .txt, .csv, .tsv, .json, "
            f".jsonl (each optionally followed by {' or '.join(COMPRESSIONS)}), .parquet or .arrow. Rename the file."
        )
    return reader(path)


def _lines(path: Path) -> Iterator[str]:
    for number, raw in raw_lines(path, Reading()):
        yield decode_line(path, number, raw)


def _table_texts(path: Path) -> Iterator[str]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    lines = list(_lines(path))
    widths = set()
    for row in csv.reader(lines, delimiter=delimiter):
        if row:
            widths.add(len(row))
        yield from row
    if len(widths) > 1:
        for line in lines:
            yield from line.split(delimiter)


def _json_texts(path: Path) -> Iterator[str]:
    numbered = enumerate(_lines(path), start=1)
    documents = numbered if detect_kind(path, TableFormat()).kind == "jsonl" else [(1, "".join(_lines(path)))]
    for number, text in documents:
        if not text.strip():
            continue
        try:
            content = parse_json(text)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error}). A .json file is one value, a .jsonl file one per line. "
                "Correct the file, or leave it out."
            ) from error
        yield from _strings(content)


def _arrow_texts(path: Path) -> Iterator[str]:
    for batch in record_batches(path, None, Reading(), kind_of(path)[1:]):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_primitive(column.type):
                continue
            try:
                yield from _strings(column.to_pylist())
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: column {name!r} holds bytes that are not UTF-8. Texts must be UTF-8. Correct its rows."
                ) from error


def _strings(content: object) -> Iterator[str]:
    """Yields all strings in nested lists and mappings, including keys."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value


def _join(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bytes of all texts end to end, and (texts,) the end offset of each."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    return np.frombuffer(b"".join(texts), dtype=np.uint8), np.cumsum(lengths)


def _window_hashes(texts: Sequence[bytes], length: int) -> Iterator[np.ndarray]:
    """Yields the hashes of all windows of `length` bytes; shorter texts have none."""
    joined, ends = _join(texts)
    room = np.repeat(ends, np.diff(ends, prepend=0)) - np.arange(len(joined))
    for first, sums, inverses in _blocks(joined, length):
        hashes = _hashes(sums, inverses, length)
        yield hashes[room[first : first + len(hashes)] >= length]


def _blocks(joined: np.ndarray, length: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Divides the bytes into overlapping blocks, so that each window of `length` bytes is inside a block.

    Yields:
        Offset of the first byte, (bytes + 1,) prefix sums of byte values times powers of the base, and inverse powers.
    """
    powers, inverses = _powers(_BLOCK + length)
    for first in range(0, len(joined), _BLOCK):
        block = joined[first : first + _BLOCK + length - 1]
        sums = np.zeros(len(block) + 1, dtype=np.uint64)
        np.cumsum(_VALUES[block] * powers[: len(block)], out=sums[1:])
        yield first, sums, inverses


def _hashes(sums: np.ndarray, inverses: np.ndarray, length: int) -> np.ndarray:
    """Returns the hash of the window at each position: the sum of value(byte j) * base**j over its bytes j, from 0."""
    count = max(0, len(sums) - length)
    return (sums[length:] - sums[:count]) * inverses[:count]


@functools.cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (base**0, base**1, ...) and their inverses, modulo 2**64."""
    bases = (_BASE, pow(_BASE, -1, 2**64))
    powers = [np.cumprod(np.array([1] + [base] * (count - 1), dtype=np.uint64)) for base in bases]
    return powers[0], powers[1]


@functools.cache
def _alphanumeric_points() -> np.ndarray:
    """Returns (code points,) bool, True for letters and digits."""
    return np.fromiter((chr(point).isalnum() for point in range(sys.maxunicode + 1)), dtype=bool)
