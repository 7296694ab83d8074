"""Mines hard negatives on all processes: encodes the texts, then searches for the pairs part by part.

Everything that a process writes is a function of the inputs, and has a name by their hash in a folder that all
processes share. So a command that was killed resumes with the files that exist.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from framework.config.mine_schema import MineConfig
from framework.config.trained import Trained
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.agreement import (
    check_agreement,
    check_shared_folder,
    first_rank_value,
    on_first_rank,
)
from framework.distributed.processes.environment import ProcessInfo
from framework.files import new_digest
from framework.mining.parts import MinedCounts, delete_folder, join_parts, write_parts
from framework.mining.rows import PAIRS_AT_ONCE, Miner, Search
from framework.mining.texts import MinedTexts
from framework.mining.vectors import ShardEncoder, Side
from framework.modules.inference import Inference
from framework.retrieval.approximate import build_index, search_index
from framework.retrieval.negatives import Candidates, Rescore, Rules
from framework.retrieval.search import nearest
from framework.tasks.reranking.task import RerankingTask

_NAME_CHARACTERS = 16


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model on the device of this process, which runs it alone.

    Attributes:
        trained: Weights, tokenizer and task.
        inference: The model without a mesh.
    """

    trained: Trained
    inference: Inference

    @property
    def identity(self) -> str:
        """Returns a hash of the weights and of all settings on which the results depend."""
        weights = self.trained.weights
        tensors: Iterable[tuple[str, Tensor]] = sorted({**weights.encoder, **weights.heads}.items())
        digest = new_digest()
        for name, tensor in tensors:
            digest.update(name.encode() + tensor.contiguous().view(-1).numpy().tobytes())
        inference = self.inference
        settings = (str(inference.precision), inference.micro_batch_tokens, inference.device.type, str(weights.config))
        digest.update(f"{settings} {self.trained.task.to_record()} {self.trained.tokenizer.fingerprint}".encode())
        return digest.hexdigest()


def mine_negatives(
    settings: MineConfig, texts: MinedTexts, model: OpenedModel, reranker: OpenedModel | None, info: ProcessInfo
) -> MinedCounts:
    """Writes the output. Collective: all ranks must call.

    Args:
        settings: Settings of the command.
        texts: Queries, documents and pairs.
        model: Embedding model.
        reranker: Reranker whose scores replace the cosines; None: cosines.
        info: This process.

    Returns:
        Counts of the rows.

    Raises:
        DataError: A file cannot be written or read.
        DistributedError: Ranks read different texts, or do not share the folder.
    """
    folder = Path(settings.vectors or f"{settings.output}.mining")
    check_shared_folder(folder)
    identity = model.identity
    documents, positives = texts.documents[: texts.num_documents], texts.documents[texts.num_documents :]
    sides: dict[str, tuple[list[str], Side]] = {
        "documents": (documents, "document"),
        "positives": (positives, "document"),
        "queries": (texts.queries, "query"),
    }
    keys = {name: _hash(identity, *own) for name, (own, _) in sides.items()}
    rules = [f"{each.name}={getattr(settings, each.name)}" for each in fields(Rules)]
    scoring = "" if reranker is None else reranker.identity
    key = _hash(*keys.values(), str(texts.pairs), *rules, scoring, settings.index, str(settings.scores))
    check_agreement({"the texts and settings": key})
    encoder = ShardEncoder(model.inference, model.trained.tokenizer, info.rank, info.world_size)
    shards = {
        name: encoder.encode(_made(folder / f"{name}_{keys[name]}"), name, own, side)
        for name, (own, side) in sides.items()
    }
    search: Search = lambda queries, k: nearest(queries, shards["documents"], k, model.inference.device)  # noqa: E731
    if settings.index == "faiss":
        path = folder / f"documents_{keys['documents']}" / "documents.faiss"
        on_first_rank(lambda: build_index(shards["documents"], path))
        search = partial(search_index, path)
    rescore = None if reranker is None else rescorer(reranker.inference, reranker.trained.tokenizer, texts)
    vectors = (shards["queries"], shards["documents"], shards["positives"])
    miner = Miner(texts, settings, *vectors, search, rescore, settings.scores)
    rows = _made(folder / f"rows_{key}")
    paths = [rows / f"{first:012}.jsonl" for first in range(0, len(texts.pairs), PAIRS_AT_ONCE)]
    write_parts(paths, lambda number: miner.rows(number * PAIRS_AT_ONCE), info.rank, info.world_size)
    counts = first_rank_value(lambda: join_parts(paths, Path(settings.output), settings.num_negatives))
    on_first_rank(lambda: delete_folder(rows if settings.vectors else folder))
    return counts


def _hash(*parts: str) -> str:
    digest = new_digest()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()[:_NAME_CHARACTERS]


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def rescorer(inference: Inference, tokenizer: Tokenizer, texts: MinedTexts) -> Rescore:
    """Returns a function that scores pairs with a reranker.

    Args:
        inference: Reranker without a mesh.
        tokenizer: Tokenizer of the reranker.
        texts: Queries and documents.
    """

    def rescore(pairs: Sequence[Candidates]) -> list[np.ndarray]:
        sizes = [1 + len(pair.documents) for pair in pairs]
        scored = [
            (texts.queries[pair.query], texts.documents[document])
            for pair in pairs
            for document in (pair.positive, *pair.documents.tolist())
        ]
        assert isinstance(inference.task, RerankingTask)
        source = inference.task.pair_source(scored, tokenizer)
        scores = np.array([each[0] for each in inference.decode(source)], dtype=np.float64)
        return np.split(scores, np.cumsum(sizes)[:-1])

    return rescore
