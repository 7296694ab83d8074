"""Encodes texts in shards of fixed size, which the processes share and a later start reuses.

A shard is encoded as if it were alone, so its vectors do not depend on the number of processes.
"""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.agreement import on_every_rank
from framework.errors import DataError
from framework.files import replacing
from framework.modules.inference import Inference
from framework.retrieval.search import unit
from framework.tasks.embedding.task import EmbeddingTask

TEXTS_PER_SHARD = 8192

Side = Literal["query", "document"]


class ShardEncoder:
    """Encoder of shards of texts.

    Args:
        inference: Embedding model on its device, without a mesh: it runs alone in its process.
        tokenizer: Tokenizer of the model.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, inference: Inference, tokenizer: Tokenizer, rank: int, world_size: int) -> None:
        self.inference = inference
        self.tokenizer = tokenizer
        self.rank = rank
        self.world_size = world_size

    def encode(self, folder: Path, name: str, texts: Sequence[str], side: Side) -> list[np.ndarray]:
        """Encodes the shards that do not exist yet. Collective: all ranks must call.

        Args:
            folder: Folder of the shards, which all ranks share.
            name: Prefix of their files.
            texts: All texts.
            side: Side of the texts, which selects their prompt.

        Returns:
            Memory maps of all shards in order, (texts, hidden) fp32 with rows of length 1.

        Raises:
            DataError: A shard cannot be written or read.
        """
        starts = range(0, len(texts), TEXTS_PER_SHARD)
        paths = [folder / f"{name}_{number:06}.npy" for number in range(len(starts))]

        def encode_one(number: int) -> None:
            if number < len(starts) and not paths[number].exists():
                first = starts[number]
                _save(paths[number], self._vectors(texts[first : first + TEXTS_PER_SHARD], side))

        for first in range(0, len(starts), self.world_size):
            # Ranks wait for each other after each shard, because the wait at the end has a limit.
            on_every_rank(partial(encode_one, first + self.rank))
        return on_every_rank(lambda: [_load(path) for path in paths])

    def _vectors(self, texts: Sequence[str], side: Side) -> np.ndarray:
        task = copy.copy(self.inference.task)
        assert isinstance(task, EmbeddingTask)
        task.side = side
        rows = [Row(number, None, {"text": text}) for number, text in enumerate(texts, start=1)]
        source = task.build_source(rows, self.tokenizer)
        return unit(np.concatenate(self.inference.decode(source)))


def _save(path: Path, vectors: np.ndarray) -> None:
    try:
        with replacing(path) as file:
            np.save(file, vectors)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}). The vectors of the documents need room. Free disk space, or "
            "choose another folder with `vectors`."
        ) from error


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). It holds encoded texts. Delete it, and start again."
        ) from error
