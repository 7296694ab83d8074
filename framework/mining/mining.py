"""Mines hard negatives on all processes: encodes the texts, then searches for the pairs part by part.

Everything that a process writes is a function of the inputs, and has a name by their hash in a folder that all
processes share. So a command that was killed resumes with the files that exist.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from framework.config.mine_schema import MineConfig
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.agreement import (
    check_agreement,
    check_shared_folder,
    first_rank_value,
    on_first_rank,
)
from framework.distributed.processes.environment import ProcessInfo
from framework.files import new_digest
from framework.mining.parts import MinedCounts, RowProgress, delete_folder, join_parts, write_parts
from framework.mining.rows import PAIRS_AT_ONCE, Miner, Search
from framework.mining.texts import MinedTexts
from framework.mining.vectors import Side, encode_texts
from framework.modules.inference import Inference
from framework.retrieval.approximate import build_index, search_index
from framework.retrieval.negatives import Candidates, Rescore, Rules
from framework.retrieval.search import nearest
from framework.runs.trained import Trained
from framework.tasks.reranking.task import RerankingTask
from framework.tracking.pass_bars import Advance

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
    settings: MineConfig,
    texts: MinedTexts,
    model: OpenedModel,
    reranker: OpenedModel | None,
    info: ProcessInfo,
    advance: Advance,
) -> MinedCounts:
    """Writes the output. Collective: all ranks must call.

    Args:
        settings: Settings of the command.
        texts: Queries, documents and pairs.
        model: Embedding model.
        reranker: Reranker whose scores replace the cosines; None: cosines.
        info: This process.
        advance: Callback for the progress of each pass.

    Returns:
        Counts of the rows.

    Raises:
        DataError: A file cannot be written or read.
        DistributedError: Ranks read different texts, or do not share the folder.
    """
    folder = Path(settings.vectors or f"{settings.output}.mining")
    check_shared_folder(folder)
    identity = model.identity
    sides: dict[str, tuple[list[str], Side]] = {
        "queries": (texts.queries, "query"),
        "documents": (texts.documents[: texts.num_documents], "document"),
        "positives": (texts.documents[texts.num_documents :], "document"),
    }
    keys = {name: _hash(identity, *own) for name, (own, _) in sides.items()}
    rules = [f"{each.name}={getattr(settings, each.name)}" for each in fields(Rules)]
    scoring = "" if reranker is None else reranker.identity
    key = _hash(*keys.values(), str(texts.pairs), *rules, scoring, settings.index, str(settings.scores))
    check_agreement({"the texts and settings": key})
    paths = {name: folder / f"{name}_{keys[name]}.npy" for name in sides}
    encode = partial(encode_texts, model.inference, model.trained.tokenizer)
    vectors = {
        name: encode(paths[name], own, side, partial(advance, f"encode {name}", total=len(own)))
        for name, (own, side) in sides.items()
    }
    progress = RowProgress(partial(advance, "search"), len(texts.pairs), PAIRS_AT_ONCE, info.world_size)
    index = paths["documents"].with_suffix(".faiss") if settings.index == "faiss" else None
    if index is not None:
        on_first_rank(lambda: build_index(vectors["documents"], index))
    miner = _miner(settings, texts, vectors, index, model.inference.device, reranker, progress)
    rows = _made(folder / f"rows_{key}")
    parts = [rows / f"{first:012}.jsonl" for first in range(0, len(texts.pairs), PAIRS_AT_ONCE)]
    write_parts(parts, lambda number: miner.rows(number * PAIRS_AT_ONCE), info.rank, info.world_size, progress.after)
    counts = first_rank_value(lambda: join_parts(parts, Path(settings.output), settings.num_negatives))
    on_first_rank(lambda: delete_folder(rows if settings.vectors else folder))
    return counts


def _miner(
    settings: MineConfig,
    texts: MinedTexts,
    vectors: Mapping[str, np.ndarray],
    index: Path | None,
    device: torch.device,
    reranker: OpenedModel | None,
    progress: RowProgress,
) -> Miner:
    """Returns the miner of all pairs, with an exact search unless there is a file of an index."""
    rescore, search = None, partial(nearest, documents=vectors["documents"], device=device, advance=progress.within)
    if reranker is not None:
        rescore = rescorer(reranker.inference, reranker.trained.tokenizer, texts, progress.within)
        # Scoring takes much longer than the search, and is shown instead.
        search = partial(search, advance=None)
    found: Search = search if index is None else partial(search_index, index)
    return Miner(texts, settings, search=found, rescore=rescore, has_scores=settings.scores, **vectors)


def _hash(*parts: str) -> str:
    digest = new_digest()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()[:_NAME_CHARACTERS]


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def rescorer(
    inference: Inference, tokenizer: Tokenizer, texts: MinedTexts, within: Callable[[int, int], None]
) -> Rescore:
    """Returns a function that scores pairs with a reranker.

    Args:
        inference: Reranker without a mesh.
        tokenizer: Tokenizer of the reranker.
        texts: Queries and documents.
        within: Callback for the number of pairs that are scored, and of all.
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
        decoded = inference.decode(source, lambda done: within(done, len(scored)))
        scores = np.array([each[0] for each in decoded], dtype=np.float64)
        return np.split(scores, np.cumsum(sizes)[:-1])

    return rescore
