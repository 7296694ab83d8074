"""Reads the documents of all sources in batches: cleaned, and without exact duplicates and other dropped documents.

Batches depend on the texts and the settings alone, so a pass can resume at any batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from framework.data.personal_data.kinds import KINDS, REGIONS, Detection, check_kinds, check_names_are_used
from framework.data.personal_data.masking import TextMasking
from framework.data.personal_data.masks import mask_tokens
from framework.data.reading.documents import Cleaner, CleanTexts
from framework.data.reading.files import Reading
from framework.data.reading.shards import ParquetShards
from framework.data.reading.sources import Source
from framework.errors import ConfigError, check_at_least

BATCH_CHARACTERS = 2_000_000
"""Largest number of characters of a batch, which a worker processes at once; a longer document is one batch."""

KEPT, EXCLUDED, NEAR_DUPLICATE = 0, 1, 2
"""Fates of a document that is neither empty nor an exact duplicate."""

Progress = Callable[[str, int, int], None]
"""Callback with (stage, bytes read, total bytes); stages are "cleaning", "vocabulary" and "tokens"."""


@dataclass(frozen=True)
class Cleaning:
    """Settings of the steps that clean and drop texts before they are encoded.

    Attributes:
        strip_html: True to remove HTML, as in `Cleaner`.
        deduplicate: True to drop exact duplicates, as in `Cleaner`.
        exclude: Paths or globs of evaluation texts; a document that overlaps one of them is dropped.
        exclude_ngram_bytes: Number of consecutive bytes of normalised text that two texts must share to overlap.
        near_duplicates: Jaccard similarity to an earlier document from which a document is dropped; None: drop none.
        num_permutations: Number of hashes of a document's signature; more hashes find near-duplicates more reliably.
        personal_data: Handling of personal data in documents that all other steps keep: "report" counts it, "mask"
            replaces each find by a token of its kind, "drop" drops the documents; None: no search.
        personal_data_kinds: Kinds to find, of `framework.data.personal_data.kinds.KINDS`.
        personal_data_regions: Regions whose national phone numbers and identity numbers are found, as in `Detection`.
        personal_data_names: File of names to find, one per line; None: no names.
        personal_data_model: Run, checkpoint or export of a model that tags words, which also finds names; None: none.
        personal_data_types: Entity types of the model that count as names; empty: all.
    """

    strip_html: bool = False
    deduplicate: bool = True
    exclude: Sequence[str] = ()
    exclude_ngram_bytes: int = 48
    near_duplicates: float | None = None
    num_permutations: int = 128
    personal_data: Literal["report", "mask", "drop"] | None = None
    personal_data_kinds: Sequence[str] = KINDS
    personal_data_regions: Sequence[str] = REGIONS
    personal_data_names: str | None = None
    personal_data_model: str | None = None
    personal_data_types: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise ConfigError(
                f"near_duplicates is {self.near_duplicates}. A similarity is above 0 and at most 1. Choose for example "
                "0.8, or null."
            )
        check_at_least("num_permutations", self.num_permutations, 2, "Choose, for example, 128.")
        check_kinds(self.personal_data_kinds)
        names, model = self.personal_data_names, self.personal_data_model
        check_names_are_used(self.personal_data, personal_data_names=names, personal_data_model=model)
        if self.personal_data_types and model is None:
            raise ConfigError(
                f"personal_data_types is {list(self.personal_data_types)}, but personal_data_model is null. They are "
                "types of a model. Set personal_data_model, or write []."
            )

    def detection(self) -> Detection:
        """Reads the names and returns the settings of the search for personal data.

        Raises:
            ConfigError: See `Detection.of`.
        """
        has_model = self.personal_data_model is not None
        return Detection.of(self.personal_data_kinds, self.personal_data_regions, self.personal_data_names, has_model)


@dataclass(frozen=True)
class Batch:
    """Documents of one source; of one row group if ids are streamed.

    Attributes:
        number: Index of the batch in the pass; the same documents have the same number in every pass.
        source: Index of the source.
        group: Index of the row group over all sources; None if ids are not streamed.
        texts: Cleaned texts.
        hashes: (texts,) uint64, hash of each text.
        ordinals: (texts,) int64, index of each among all documents read.
        rows: (texts,) int64, index of each text in its row group, or in its source if ids are not streamed; dropped
            texts count too.
        num_characters: Number of characters of the texts before dropping excluded texts and near-duplicates.
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
    """Counts of the documents of a source that were read and dropped.

    Attributes:
        read: Number of documents read.
        duplicates: Number of exact duplicates of an earlier document.
        excluded: Number of documents that overlap an evaluation text.
        near_duplicates: Number of near-duplicates of an earlier document.
    """

    read: int = 0
    duplicates: int = 0
    excluded: int = 0
    near_duplicates: int = 0

    def add(self, num_read: int, cleaned: CleanTexts) -> None:
        """Adds the counts of a cleaned batch of texts."""
        self.read += num_read
        self.duplicates += cleaned.num_duplicates


@dataclass
class Corpus:
    """Sources with the settings for reading them; every pass yields the same batches.

    Attributes:
        sources: Sources by name, read in this order.
        cleaning: Cleaning settings.
        on_bad_row: Handling of bad rows, as in `Reading`.
        streamed: True if training will read the texts again from the sources, which are `ParquetShards`.
        progress: Callback for the progress of a pass; None: no callback.
        reading: Bad rows of the latest pass.
        tallies: Counts of the latest pass, one per source.
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
        """Streams non-empty batches; `reading` and `tallies` are complete at the end.

        Args:
            stage: Stage that is passed to `progress`.
            fates: (documents read,) KEPT, EXCLUDED or NEAR_DUPLICATE for each document; None: all are kept.
            first: Number of the first batch to yield; earlier ones are read only to find duplicates.
        """
        self._start_pass(stage)
        cleaner = Cleaner(self.cleaning.strip_html, self.cleaning.deduplicate)
        num_read = 0
        for number, (source, group, row, texts) in enumerate(self._read()):
            cleaned = cleaner.clean(texts)
            ordinals, rows = cleaned.indices + num_read, cleaned.indices + row
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
        kept = np.flatnonzero(fate == KEPT)
        texts = [batch.texts[index] for index in kept]
        arrays = {name: getattr(batch, name)[kept] for name in ("hashes", "ordinals", "rows")}
        return replace(batch, texts=texts, **arrays)

    def _start_pass(self, stage: str) -> None:
        done = 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            if self.progress is not None:
                self.progress(stage, done, self.num_bytes)

        self.reading = Reading(self.on_bad_row, advance, conceal=self._conceal())
        self.tallies = [Tally() for _ in self.sources]

    def _conceal(self) -> Callable[[str], str] | None:
        """Returns the function that removes personal data from messages about rows, which the store keeps."""
        if self.cleaning.personal_data not in ("mask", "drop"):
            return None
        detection = self.cleaning.detection()
        return TextMasking(detection, mask_tokens(detection.all_kinds)).message

    def _read(self) -> Iterator[tuple[int, int | None, int, list[str]]]:
        """Yields (index of the source, row group, row of the first text, texts of a batch before cleaning)."""
        for source, group, texts in self._streams():
            row = 0
            for batch in in_batches(texts):
                yield source, group, row, batch
                row += len(batch)

    def _streams(self) -> Iterator[tuple[int, int | None, Iterator[str]]]:
        """Yields (index of the source, index of the row group over all sources, its texts)."""
        number = 0
        for index, source in enumerate(self.sources.values()):
            if not self.streamed:
                yield index, None, source.read(self.reading)
                continue
            assert isinstance(source, ParquetShards)
            for group in source.groups():
                yield index, number, source.read_group(group, self.reading)
                number += 1


def _num_bytes(source: Source) -> int:
    """Returns the number of bytes that one pass over a source reports to `Reading.advance`."""
    return source.num_bytes() if isinstance(source, ParquetShards) else sum(p.stat().st_size for p in source.paths())


def in_batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Yields lists of consecutive texts with at most `BATCH_CHARACTERS` in total, or of one longer text."""
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        # Each text counts one character more; otherwise a batch could hold any number of empty texts.
        size = len(text) + 1
        if batch and num_characters + size > BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
        batch.append(text)
        num_characters += size
    if batch:
        yield batch
