"""The documents of all sources in batches: read, cleaned, without exact duplicates and without what was dropped.

Batches depend on the text and the settings alone, so a pass can be gone on with at any batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from framework.data.reading.documents import Cleaner, CleanTexts
from framework.data.reading.files import Reading
from framework.data.reading.shards import ParquetShards
from framework.data.reading.sources import Source
from framework.errors import ConfigError

BATCH_CHARACTERS = 2_000_000
"""Most text of a batch, which a worker has before it and which becomes a record batch; a longer document is one."""

KEPT, EXCLUDED, NEAR_DUPLICATE = 0, 1, 2
"""What becomes of a document that is neither empty nor an exact duplicate."""

Progress = Callable[[str, int, int], None]
"""Is told (stage, bytes read, bytes in all); stages are "cleaning", "vocabulary" and "tokens"."""


@dataclass(frozen=True)
class Cleaning:
    """What is done about texts before they are encoded.

    Attributes:
        strip_html: See `Cleaner`.
        deduplicate: See `Cleaner`.
        exclude: Paths or globs of evaluation texts; a document that overlaps one is left out.
        exclude_ngram_bytes: Length of the shared stretch that makes an overlap.
        near_duplicates: Documents that are at least this similar (Jaccard) to an earlier one are left out; None: none.
        num_permutations: Hashes of a document's signature; more find near-duplicates more surely.
    """

    strip_html: bool = False
    deduplicate: bool = True
    exclude: Sequence[str] = ()
    exclude_ngram_bytes: int = 48
    near_duplicates: float | None = None
    num_permutations: int = 128

    def __post_init__(self) -> None:
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise ConfigError(
                f"near_duplicates is {self.near_duplicates}, but a similarity lies above 0 and is at most 1; give for "
                "example 0.8, or null."
            )
        if self.num_permutations < 2:
            raise ConfigError(f"num_permutations is {self.num_permutations}, it must be at least 2; 128 is usual.")


@dataclass(frozen=True)
class Batch:
    """Documents of one source, where ids are streamed of one row group.

    Attributes:
        number: Counted over the pass; the same documents have the same number in every pass.
        source: Place of the source.
        group: Number of the row group, counted over all sources; None where ids are not streamed.
        texts: Cleaned.
        hashes: (texts,) uint64.
        ordinals: (texts,) int64, each counted among all documents that were read.
        rows: (texts,) int64, the place of each among the texts of its row group (where ids are not streamed, of its
            source), dropped ones counted too.
        num_characters: Of the texts, those that were dropped later too.
    """

    number: int
    source: int
    group: int | None
    texts: list[str]
    hashes: np.ndarray
    ordinals: np.ndarray
    rows: np.ndarray
    num_characters: int


@dataclass
class Tally:
    """What was read of a source and dropped.

    Attributes:
        read: Documents in all.
        duplicates: Exactly like an earlier one.
        excluded: Like an evaluation text.
        near_duplicates: Nearly like an earlier one.
    """

    read: int = 0
    duplicates: int = 0
    excluded: int = 0
    near_duplicates: int = 0

    def add(self, num_read: int, cleaned: CleanTexts) -> None:
        """Counts a batch of texts that was cleaned."""
        self.read += num_read
        self.duplicates += cleaned.num_duplicates


@dataclass
class Corpus:
    """The sources and how they are read; every pass over them gives the same batches.

    Attributes:
        sources: By name, read in this order.
        cleaning: What is done about texts.
        on_bad_row: See `Reading`.
        streamed: Ids will be read from the sources again; they are `ParquetShards`.
        progress: Is told how far a pass is.
        reading: Of the latest pass.
        tallies: Of the latest pass, one a source.
    """

    sources: Mapping[str, Source]
    cleaning: Cleaning
    on_bad_row: Literal["error", "skip"]
    streamed: bool = False
    progress: Progress | None = None
    reading: Reading = field(default_factory=Reading)
    tallies: list[Tally] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_files = sum(len(source.paths()) for source in self.sources.values())
        self.num_bytes = sum(map(_num_bytes, self.sources.values()))

    def batches(self, stage: str, fates: np.ndarray | None = None, first: int = 0) -> Iterator[Batch]:
        """Streams batches, each with at least one document; `reading` and `tallies` are whole at the end.

        Args:
            stage: Told to `progress`.
            fates: (documents read,) KEPT, EXCLUDED or NEAR_DUPLICATE of each; None: all are kept.
            first: Batches of a smaller number are read for the duplicates and not given.
        """
        self._start_pass(stage)
        cleaner = Cleaner(self.cleaning.strip_html, self.cleaning.deduplicate)
        num_read = 0
        for number, (source, group, row, texts) in enumerate(self._read()):
            cleaned = cleaner.clean(texts)
            ordinals, rows = cleaned.places + num_read, cleaned.places + row
            size = sum(map(len, cleaned.texts))
            batch = Batch(number, source, group, cleaned.texts, cleaned.hashes, ordinals, rows, size)
            num_read += len(texts)
            self.tallies[source].add(len(texts), cleaned)
            if fates is not None:
                batch = self._without_dropped(batch, fates[batch.ordinals])
            if batch.texts and number >= first:
                yield batch

    def _without_dropped(self, batch: Batch, fate: np.ndarray) -> Batch:
        tally = self.tallies[batch.source]
        tally.excluded += int((fate == EXCLUDED).sum())
        tally.near_duplicates += int((fate == NEAR_DUPLICATE).sum())
        places = np.flatnonzero(fate == KEPT)
        texts = [batch.texts[place] for place in places]
        kept = {name: getattr(batch, name)[places] for name in ("hashes", "ordinals", "rows")}
        return replace(batch, texts=texts, **kept)

    def _start_pass(self, stage: str) -> None:
        done = 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            if self.progress is not None:
                self.progress(stage, done, self.num_bytes)

        self.reading = Reading(self.on_bad_row, advance)
        self.tallies = [Tally() for _ in self.sources]

    def _read(self) -> Iterator[tuple[int, int | None, int, list[str]]]:
        """(source, row group, row of the first text, texts of a batch as they were read)."""
        for source, group, texts in self._streams():
            row = 0
            for batch in in_batches(texts):
                yield source, group, row, batch
                row += len(batch)

    def _streams(self) -> Iterator[tuple[int, int | None, Iterator[str]]]:
        """(source, row group, its texts)."""
        number = 0
        for place, source in enumerate(self.sources.values()):
            if not self.streamed:
                yield place, None, source.read(self.reading)
                continue
            assert isinstance(source, ParquetShards)
            for group in source.groups():
                yield place, number, source.read_group(group, self.reading)
                number += 1


def _num_bytes(source: Source) -> int:
    """What one reading of it tells to `Reading.advance`."""
    return source.num_bytes() if isinstance(source, ParquetShards) else sum(p.stat().st_size for p in source.paths())


def in_batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Cuts a stream of texts into lists of at most `BATCH_CHARACTERS`, or of one text that is longer."""
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        # An empty text counts too, or very many of them would be one batch.
        size = len(text) + 1
        if batch and num_characters + size > BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
        batch.append(text)
        num_characters += size
    if batch:
        yield batch
