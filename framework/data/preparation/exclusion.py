"""Evaluation texts that must not be trained on: documents that share a run of letters with one of them are found.

A text is reduced to its letters and digits (`normalise`), so that tokenisation, punctuation, case and spaces make no
difference. Documents are then searched for every window of `ngram_bytes` bytes of the evaluation texts, at every
offset, by a rolling hash: the polynomial hash of Karp and Rabin (1987, "Efficient randomized pattern-matching
algorithms") modulo 2**64, with a random value for each byte. Nothing that is shared is missed; two different windows
have the same hash about once in 2**64 comparisons.
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
from framework.data.reading.table_kind import conclude_kind
from framework.errors import ConfigError, DataError
from framework.files import parse_json
from framework.random import key, mix

MIN_BYTES = 20
"""Shorter texts are not searched for: labels, names, "a good film"."""

_BLOCK = 1 << 15
"""Positions that are hashed at once; small enough for the processor's cache."""

_ALPHANUMERIC_ASCII = bytes(byte for byte in range(128) if chr(byte).isalnum())
_LOWER_ASCII = bytes(range(256)).lower()
_OTHER_ASCII = bytes(byte for byte in range(128) if byte not in _ALPHANUMERIC_ASCII)

_VALUES = mix(key("exclusion", "value of a byte"), np.arange(256))
# 5 modulo 8: its powers repeat only after 2**62 steps.
_BASE = (key("exclusion", "base") & ~7) | 5


def normalise(text: str) -> bytes:
    """UTF-8 of the letters and digits of a text, after Unicode's NFKC and case folding."""
    if text.isascii():
        return text.encode().translate(_LOWER_ASCII, _OTHER_ASCII)
    text = unicodedata.normalize("NFKC", text).casefold()
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return points[_alphanumeric_points()[points]].tobytes().decode("utf-32-le").encode()


@dataclass(frozen=True, eq=False)
class HashSet:
    """A set of 64-bit hashes, for many questions at once.

    Attributes:
        hashes: (hashes,) uint64, ascending, each once.
        bitmap: uint8, one bit for each value that the upper bits of a hash can have: set where one of the hashes has
            it. At most 1 bit in 32 is set, so that few of the absent hashes have to be looked up.
    """

    hashes: np.ndarray
    bitmap: np.ndarray

    @classmethod
    def of(cls, hashes: Iterable[np.ndarray]) -> "HashSet":
        """The set of all hashes in these arrays."""
        unique = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *hashes]))
        num_bits = max(8, (32 * len(unique) - 1).bit_length())
        bits = np.zeros(2**num_bits, dtype=bool)
        bits[unique >> np.uint64(64 - num_bits)] = True
        return cls(unique, np.packbits(bits, bitorder="little"))

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Ascending places of those hashes that are in the set."""
        place = hashes >> np.uint64(64 - (8 * len(self.bitmap) - 1).bit_length())
        bits = self.bitmap[place >> np.uint64(3)] >> (place & np.uint64(7)).astype(np.uint8)
        maybe = np.flatnonzero(bits & 1)
        wanted = hashes[maybe]
        found = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return maybe[self.hashes[found] == wanted]


@dataclass(frozen=True, eq=False)
class ExclusionIndex:
    """What has to be found, as hashes; small enough to be sent to other processes.

    Attributes:
        ngram_bytes: Length of a window, in bytes of normalised text.
        windows: Of the texts with at least `ngram_bytes`, all windows.
        beginnings: Of the shorter texts with at least MIN_BYTES, the first MIN_BYTES bytes.
        shorts: The same texts as a whole.
        short_lengths: (lengths,) int64, the lengths in bytes that occur among these.
        num_texts: Different evaluation texts that are searched for.
        num_too_short: Different ones that are not, since they have fewer than MIN_BYTES bytes.
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
        """Reads evaluation files, whatever their columns are called (`evaluation_texts`).

        Args:
            patterns: Paths and globs.
            ngram_bytes: Length of a window; 48 bytes are about 10 English words or 16 Chinese characters.

        Raises:
            ConfigError: `ngram_bytes` is smaller than MIN_BYTES.
            DataError: A pattern matches no file, or a file cannot be read, is broken, or holds no text that is long
                enough.
        """
        if ngram_bytes < MIN_BYTES:
            raise ConfigError(
                f"ngram_bytes={ngram_bytes} is too short to tell a text from a phrase; use at least {MIN_BYTES}."
            )
        texts: set[bytes] = set()
        for path in find_files(patterns):
            found = {normalise(text) for text in evaluation_texts(path)} - {b""}
            if not any(len(text) >= MIN_BYTES for text in found):
                raise DataError(
                    f"{path} holds no text with {MIN_BYTES} bytes of letters and digits, nothing of it can be found; "
                    "correct the path or leave it out."
                )
            texts |= found
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
        """Tells two indexes apart that would find different documents."""
        digest = hashlib.blake2b(b"exclusion 1", digest_size=16)
        for part in (self.windows, self.shorts):
            digest.update(part.hashes.astype("<u8").tobytes())
            digest.update(b"|")
        return digest.hexdigest()

    def overlaps(self, texts: Sequence[str]) -> np.ndarray:
        """Tells which documents share a window, or a whole short text, with an evaluation text.

        Returns:
            (texts,) bool.
        """
        result = np.zeros(len(texts), dtype=bool)
        joined, ends = _join([normalise(text) for text in texts])
        for positions, length in self._find(joined):
            owners = np.searchsorted(ends, positions, side="right")
            # Texts lie end to end: what begins in one and ends in the next is no part of a text.
            result[owners[positions + length <= ends[owners]]] = True
        return result

    def _find(self, joined: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """(positions, length) of what is found; texts are not kept apart."""
        for first, sums, inverses in _blocks(joined, self.ngram_bytes):
            found = self.windows.find(_hashes(sums, inverses, self.ngram_bytes))
            yield first + found, self.ngram_bytes
            if len(self.short_lengths) == 0:
                continue
            beginnings = self.beginnings.find(_hashes(sums, inverses, MIN_BYTES))
            for length in self.short_lengths.tolist():
                starts = beginnings[beginnings + length < len(sums)]
                whole = self.shorts.find((sums[starts + length] - sums[starts]) * inverses[starts])
                yield first + starts[whole], length


def evaluation_texts(path: Path) -> Iterator[str]:
    """Streams all texts of a file, short fields such as labels among them.

    Plain text: each line. CSV and TSV: each field of each row, with or without a header; where the rows do not all have
    the same number of fields when read with quotes, also the fields read without. JSON and JSONL: each string.
    Parquet and Arrow: each string in any column. All but the last two may be gzip or zstd files.

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
            f"{path} has a suffix that tells no kind of evaluation file; rename it to .txt, .csv, .tsv, .json, .jsonl "
            f"(each may be followed by {' or '.join(COMPRESSIONS)}), .parquet or .arrow."
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
    documents = numbered if conclude_kind(path, TableFormat()).kind == "jsonl" else [(1, "".join(_lines(path)))]
    for number, text in documents:
        if not text.strip():
            continue
        try:
            content = parse_json(text)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); correct it or leave the file out.") from error
        yield from _strings(content)


def _arrow_texts(path: Path) -> Iterator[str]:
    for batch in record_batches(path, None, Reading(), kind_of(path)[1:]):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_primitive(column.type):
                continue
            try:
                yield from _strings(column.to_pylist())
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: column {name!r} holds bytes that are not UTF-8; correct its rows.") from error


def _strings(content: object) -> Iterator[str]:
    """All strings in lists and mappings, their keys among them."""
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
    """(bytes of all texts end to end, (texts,) where each ends)."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    return np.frombuffer(b"".join(texts), dtype=np.uint8), np.cumsum(lengths)


def _window_hashes(texts: Sequence[bytes], length: int) -> Iterator[np.ndarray]:
    """Hashes of all windows of texts that are at least that long."""
    joined, ends = _join(texts)
    room = np.repeat(ends, np.diff(ends, prepend=0)) - np.arange(len(joined))
    for first, sums, inverses in _blocks(joined, length):
        hashes = _hashes(sums, inverses, length)
        yield hashes[room[first : first + len(hashes)] >= length]


def _blocks(joined: np.ndarray, length: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Cuts the bytes into blocks that overlap so far that each window of `length` bytes lies in one.

    Yields:
        (place of the first byte, (bytes + 1,) sums of byte values times powers of the base, inverse powers).
    """
    powers, inverses = _powers(_BLOCK + length)
    for first in range(0, len(joined), _BLOCK):
        block = joined[first : first + _BLOCK + length - 1]
        sums = np.zeros(len(block) + 1, dtype=np.uint64)
        np.cumsum(_VALUES[block] * powers[: len(block)], out=sums[1:])
        yield first, sums, inverses


def _hashes(sums: np.ndarray, inverses: np.ndarray, length: int) -> np.ndarray:
    """Hash of the window that begins at each place: the sum of value(byte j) * base**j, j counted from its start."""
    count = max(0, len(sums) - length)
    return (sums[length:] - sums[:count]) * inverses[:count]


@functools.cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(base**0, base**1, ...) and their inverses, modulo 2**64."""
    bases = (_BASE, pow(_BASE, -1, 2**64))
    powers = [np.cumprod(np.array([1] + [base] * (count - 1), dtype=np.uint64)) for base in bases]
    return powers[0], powers[1]


@functools.cache
def _alphanumeric_points() -> np.ndarray:
    """(code points,) bool, True for letters and digits."""
    return np.fromiter((chr(point).isalnum() for point in range(sys.maxunicode + 1)), dtype=bool)
