"""Encodes the texts of one side into an array of vectors, in blocks that the processes share and a later start reuses.

A block is encoded as if it were alone, so its vectors do not depend on the number of processes.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.agreement import first_rank_value, on_every_rank
from framework.errors import DataError
from framework.inference.vector_files import Kept, VectorArray, write_vectors
from framework.modules.inference import Inference
from framework.retrieval.search import unit
from framework.tasks.embedding.task import EmbeddingTask

Side = Literal["query", "document"]


def encode_texts(
    inference: Inference,
    tokenizer: Tokenizer,
    path: Path,
    texts: Sequence[str],
    side: Side,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Encodes texts into a file, unless it exists. Collective: all ranks must call.

    Args:
        inference: Embedding model on its device, without a mesh: it runs alone in its process.
        tokenizer: Tokenizer of the model.
        path: File of the array, in a folder that all ranks share. Its name identifies model, texts and side.
        texts: Texts.
        side: Side of the texts, which selects their prompt.
        advance: Callback for the number of texts that are done.

    Returns:
        Memory map of the vectors, (texts, hidden) fp32 with rows of length 1.

    Raises:
        DataError: The file cannot be written or read.
    """
    task = copy.copy(inference.task)
    assert isinstance(task, EmbeddingTask)
    task.side = side
    width = inference.model.encoder.config.hidden_size

    def compute(own: list[str], done: Callable[[int], None]) -> tuple[np.ndarray, Kept]:
        rows = [Row(number, None, {"text": text}) for number, text in enumerate(own, start=1)]
        return unit(np.concatenate(inference.decode(task.build_source(rows, tokenizer), done))), ()

    if not first_rank_value(path.exists):
        write_vectors(VectorArray(path, len(texts), width), {"name": path.name}, lambda: texts, compute, advance)
    return on_every_rank(lambda: _load(path))


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). It holds encoded texts. Delete it, and start again."
        ) from error
