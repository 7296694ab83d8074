"""Data of pre-training as configured: a store, its splits, the weights of its sources, and the reading order."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from framework.data.planning.mixture import Mixture
from framework.data.planning.order import Shuffle
from framework.data.store.sequence_index import Division, SequenceIndex, open_index
from framework.data.store.token_store import TokenStore
from framework.errors import ConfigError, DataError, check_at_least, check_fraction, counted
from framework.random import key, mix, uniform

_FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class StoreData:
    """A store whose documents are split by a hash of their text.

    Attributes:
        store: Folder of the store.
        validation_fraction: Approximate share of the documents that is held out. Of a streamed store, whole row groups
            are held out, so that validation fetches no others.
        split_seed: Seed of the split, independent of the seed of the run.
        weights: Number of times that an epoch sees the training texts of each source, by source name in the corpus.
            Sources without a weight are seen once; None: all are.
        block_size: Number of adjacent sequences of the store that are read together; None: fully random order, which
            requires a store that fits into memory or is on a fast disk.
        window_blocks: Number of blocks that are shuffled together.
        cache_megabytes: Memory per process for ids of a streamed store; it must hold two windows of blocks.
        storage_options: Arguments of fsspec file systems, if the shards of a streamed store need them.
    """

    store: str
    validation_fraction: float = 0.01
    split_seed: int = 0
    weights: Mapping[str, float] | None = None
    block_size: int | None = None
    window_blocks: int = 64
    cache_megabytes: int = 1024
    storage_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_fraction("data.validation_fraction", self.validation_fraction, "Choose, for example, 0.01.")
        for name, weight in (self.weights or {}).items():
            check_at_least(f"data.weights.{name}", weight, 0, "Use 0 to leave the source out.")
        _ = self.shuffle

    @property
    def shuffle(self) -> Shuffle:
        """Returns the order of training.

        Raises:
            ConfigError: A size is below 1.
        """
        return Shuffle(self.block_size, self.window_blocks)

    @cached_property
    def opened(self) -> TokenStore:
        """Returns the store; the first access opens it.

        Raises:
            DataError: See `TokenStore.open`.
        """
        return TokenStore.open(self.store, self.cache_megabytes * 2**20, self.storage_options)

    def splits(self, text_hashes: np.ndarray) -> dict[str, np.ndarray]:
        """Assigns the documents of a record batch to splits.

        Args:
            text_hashes: (documents,) uint64.

        Returns:
            (documents,) bool by split: "train" and, unless `validation_fraction` is 0, "validation".
        """
        if self.opened.is_streamed:
            text_hashes = np.full_like(text_hashes, text_hashes[0])
        draws = uniform(mix(key(self.split_seed, "validation documents"), text_hashes))
        held_out = draws < self.validation_fraction
        return {"train": ~held_out, "validation": held_out} if self.validation_fraction > 0 else {"train": ~held_out}

    def indexes(self, division: Division) -> dict[str, SequenceIndex]:
        """Returns the index of the sequences of each split.

        Raises:
            DataError: A split has no document.
            ConfigError: The store is streamed, and the order would fetch its shards repeatedly.
        """
        if self.opened.is_streamed:
            self._check_streaming(division)
        name = f"{self.validation_fraction} {self.split_seed}"
        indexes = open_index(self.opened, division, self.splits, name)
        for split, index in indexes.items():
            if len(index.documents) == 0:
                raise DataError(
                    f"the split {split} of {self.store} is empty: the store has "
                    f"{counted(self.opened.num_documents, 'document')} and data.validation_fraction is "
                    f"{self.validation_fraction}. Each split needs at least one. Change the fraction, or add documents."
                )
        return indexes

    @property
    def fills_all_splits(self) -> bool:
        """Returns True if each split has a document."""
        occupied: set[str] = set()
        expected = {"train", "validation"} if self.validation_fraction > 0 else {"train"}
        for batch in self.opened.batches():
            occupied |= {split for split, chosen in self.splits(batch.text_hashes).items() if chosen.any()}
            if occupied == expected:
                return True
        return False

    def mixture(self, index: SequenceIndex) -> Mixture:
        """Returns the mixture of the chunks of all sources in an epoch.

        Raises:
            ConfigError: A weight names no source of the store, or an epoch has no sequence.
        """
        sources = self.opened.sources
        names = list(sources)
        unknown = sorted(set(self.weights or {}) - set(names))
        if unknown:
            raise ConfigError(
                f"data.weights.{unknown[0]} names no source of {self.store}. Its sources are {', '.join(names)}. "
                "Name one of these."
            )
        ends = np.cumsum(list(sources.values()))
        sizes = np.diff([0, *(index.chunks_before(int(end)) for end in ends)])
        weights = np.array([(self.weights or {}).get(name, 1.0) for name in names])
        mixture = Mixture(sizes, weights)
        if len(mixture) == 0:
            raise ConfigError(
                f"data.weights is {dict(self.weights or {})}, with which an epoch over {self.store} has no sequence. "
                "An epoch needs at least one. Raise a weight."
            )
        return mixture

    def _check_streaming(self, division: Division) -> None:
        if self.block_size is None:
            raise ConfigError(
                f"data.block_size is null, but the store {self.store} is streamed. Without blocks, each step would "
                "fetch from all shards. Set data.block_size, for example 1024."
            )
        # Ids take 4 bytes each.
        window = 4 * division.max_tokens * self.block_size * self.window_blocks
        if 2 * window > self.cache_megabytes * 2**20:
            raise ConfigError(
                f"data.cache_megabytes is {self.cache_megabytes}. Two windows of "
                f"window_blocks={self.window_blocks} blocks of block_size={self.block_size} sequences take up to "
                f"{2 * window / 2**20:,.0f} MiB. Raise cache_megabytes, or lower window_blocks or block_size."
            )


def too_little_to_split(store: str) -> str | None:
    """Returns a warning if the default split of training would have no documents for training or for validation."""
    default = StoreData(store)
    if default.fills_all_splits:
        return None
    fraction = next((share for share in _FRACTIONS if StoreData(store, share).fills_all_splits), None)

    remedy = (
        "data.validation_fraction=0, which trains without validation"
        if fraction is None
        else f"data.validation_fraction={fraction}"
    )
    return (
        f"{store} has {counted(default.opened.num_documents, 'document')}. That is too few for "
        f"data.validation_fraction={default.validation_fraction}, the default of framework.train: each split needs at "
        f"least one. Train with {remedy}, add texts, or split each file into more documents "
        "(corpus.sources.text.documents=blank_lines)."
    )
