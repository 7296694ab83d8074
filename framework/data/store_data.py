"""Data of pre-training as a config says it: a store, its split, how often its sources are seen, in what order."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from framework.data.planning.mixture import Mixture
from framework.data.planning.order import Shuffle
from framework.data.store.sequence_index import Division, SequenceIndex, open_index
from framework.data.store.token_store import TokenStore
from framework.errors import ConfigError, DataError
from framework.random import key, mix, uniform

_FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class StoreData:
    """A store whose documents are split by a hash of their text.

    Attributes:
        store: Folder of the store.
        validation_fraction: Share of the documents that is held out, about; of a streamed store whole row groups are,
            so that validation fetches no others.
        split_seed: Decides the split, apart from the run's seed.
        weights: How often the training texts of each source are seen in an epoch, by the source's name in the corpus;
            sources that are not named, and None, are seen once.
        block_size: Sequences that lie side by side in the store and are read together; None: any order, which wants a
            store that fits into memory or lies on a fast disk.
        window_blocks: Blocks that are mixed with each other.
        cache_megabytes: Memory of a process for ids of a streamed store; it must hold two windows of blocks.
        storage_options: What fsspec's file systems are made with, where a streamed store's shards need it.
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
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction is {self.validation_fraction}, it must be at least 0 and below 1.")
        for name, weight in (self.weights or {}).items():
            if not weight >= 0:
                raise ConfigError(f"weights.{name} is {weight}, it must be at least 0.")
        _ = self.shuffle

    @property
    def shuffle(self) -> Shuffle:
        """The order of training.

        Raises:
            ConfigError: A size is below 1.
        """
        return Shuffle(self.block_size, self.window_blocks)

    @cached_property
    def opened(self) -> TokenStore:
        """The store, opened at the first use.

        Raises:
            DataError: See `TokenStore.open`.
        """
        return TokenStore.open(self.store, self.cache_megabytes * 2**20, self.storage_options)

    def splits(self, text_hashes: np.ndarray) -> dict[str, np.ndarray]:
        """Where the documents of a record batch belong.

        Args:
            text_hashes: (documents,) uint64.

        Returns:
            (documents,) bool for "train" and, unless its fraction is 0, "validation".
        """
        if self.opened.is_streamed:
            text_hashes = np.full_like(text_hashes, text_hashes[0])
        draws = uniform(mix(key(self.split_seed, "validation documents"), text_hashes))
        held_out = draws < self.validation_fraction
        return {"train": ~held_out, "validation": held_out} if self.validation_fraction > 0 else {"train": ~held_out}

    def indexes(self, division: Division) -> dict[str, SequenceIndex]:
        """The sequences of each split.

        Raises:
            DataError: A split has no document.
            ConfigError: The store is streamed, and the order would fetch its shards again and again.
        """
        if self.opened.is_streamed:
            self._check_streaming(division)
        name = f"{self.validation_fraction} {self.split_seed}"
        indexes = open_index(self.opened, division, self.splits, name)
        for split, index in indexes.items():
            if len(index.documents) == 0:
                raise DataError(
                    f"{self.store} has {self.opened.num_documents} documents, of which "
                    f"validation_fraction={self.validation_fraction} leaves none for {split}; change the fraction or "
                    "add documents."
                )
        return indexes

    @property
    def fills_all_splits(self) -> bool:
        """Returns True if each split has a document."""
        filled: set[str] = set()
        expected = {"train", "validation"} if self.validation_fraction > 0 else {"train"}
        for batch in self.opened.batches():
            filled |= {split for split, chosen in self.splits(batch.text_hashes).items() if chosen.any()}
            if filled == expected:
                return True
        return False

    def mixture(self, index: SequenceIndex) -> Mixture:
        """How often the chunks of the sources are seen.

        Raises:
            ConfigError: A weight names no source of the store, or the weights leave nothing.
        """
        sources = self.opened.sources
        names = list(sources)
        unknown = sorted(set(self.weights or {}) - set(names))
        if unknown:
            raise ConfigError(
                f"weights.{unknown[0]} names no source of {self.store}, which has {', '.join(names)}; name one of "
                "these."
            )
        ends = np.cumsum(list(sources.values()))
        sizes = np.diff([0, *(index.chunks_before(int(end)) for end in ends)])
        weights = np.array([(self.weights or {}).get(name, 1.0) for name in names])
        mixture = Mixture(sizes, weights)
        if len(mixture) == 0:
            raise ConfigError(
                f"the weights {dict(self.weights or {})} leave no sequence of {self.store}; raise one of them."
            )
        return mixture

    def _check_streaming(self, division: Division) -> None:
        if self.block_size is None:
            raise ConfigError(
                f"the store {self.store} is streamed, but block_size is null, so every step would fetch shards from "
                "everywhere; set data.block_size, for example 1024."
            )
        # Ids are kept as int32.
        window = 4 * division.max_tokens * self.block_size * self.window_blocks
        if 2 * window > self.cache_megabytes * 2**20:
            raise ConfigError(
                f"two windows of window_blocks={self.window_blocks} blocks of block_size={self.block_size} sequences "
                f"take up to {2 * window / 2**20:,.0f} MiB, but cache_megabytes is {self.cache_megabytes}; raise it, "
                "or lower one of the others."
            )


def too_little_to_split(store: str) -> str | None:
    """Returns a warning if the default split of training would leave one side of a store without documents."""
    default = StoreData(store)
    if default.fills_all_splits:
        return None
    fraction = next((share for share in _FRACTIONS if StoreData(store, share).fills_all_splits), None)
    number = default.opened.num_documents
    remedy = (
        "data.validation_fraction=0, which trains without validation"
        if fraction is None
        else f"data.validation_fraction={fraction}"
    )
    return (
        f"{store} has {number} document{'' if number == 1 else 's'}. That is too few for "
        f"data.validation_fraction={default.validation_fraction}, the default of framework.train: each split needs at "
        f"least one. Train with {remedy}, add texts, or split each file into more documents "
        "(corpus.sources.text.documents=blank_lines)."
    )
