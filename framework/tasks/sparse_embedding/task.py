"""Sparse embeddings (SPLADE): texts are compared by the words that they contain or suggest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.data.flat_source import FlatSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import check_at_least
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.embedding.features import DrawnPairs
from framework.tasks.embedding.losses import ANCHOR, NO_QUERY, POSITIVE
from framework.tasks.embedding.scores import Scorer
from framework.tasks.embedding.search_task import Score, SearchTask
from framework.tasks.embedding.task import TAUGHT
from framework.tasks.sparse_embedding.head import SparseHead

QUERY_FLOPS, DOCUMENT_FLOPS = "query_flops", "document_flops"
_NEEDED = (
    "The weights of a text are the scores of the head for masked words, and new ones are random. Start from a masked "
    "language model (a class that ends with ForMaskedLM), or from a run of task=pretraining; "
    "experiment=continue_pretraining trains such a head."
)
_SMALL = 0.01
"""Weight from which on a word is counted."""


@dataclass(frozen=True, eq=False)
class SparseVector:
    """Weights of the words of one text.

    Attributes:
        words: (words,) int32 ascending ids of the words with a weight above 0.
        weights: (words,) fp32 weights.
        vocab_size: Number of words of the model.
    """

    words: np.ndarray
    weights: np.ndarray
    vocab_size: int


class SparseEmbeddingTask(SearchTask):
    """Text search by the products of word weights (Formal et al. 2021, arXiv:2109.10086).

    Two further loss terms keep most weights at 0 (`flops`). Their weights grow quadratically over the first steps of a
    run, as in section 3 of the paper, and are a function of the step alone.

    Args:
        objective: "contrastive", "margin_mse" or "kl", as in `EmbeddingTask`, with products instead of cosines.
        max_length: Maximum number of tokens of a sequence, special tokens included.
        query_flops: Weight of the regularization of queries.
        document_flops: Weight of the regularization of documents.
        flops_warmup_steps: Number of steps after which these weights are reached; 0: from the first step on.
        temperature: Divisor of scores in the loss.
        symmetric: Half of the loss compares each positive with all queries.
        candidates: Search candidates of evaluation. "split": documents of the split. "train": also those of training.
        side: Side of single texts that are predicted: "query" or "document".

    Raises:
        ConfigError: A name is unknown or a number is out of range.
    """

    head_kind = "sparse_embedding"
    allows_tensor_parallel = False
    score_name = "score"
    required_weights = MappingProxyType({"head.mlm.": _NEEDED})

    def __init__(
        self,
        objective: Literal["contrastive", "margin_mse", "kl"] = "contrastive",
        max_length: int = 256,
        query_flops: float = 5e-5,
        document_flops: float = 3e-5,
        flops_warmup_steps: int = 0,
        temperature: float = 1.0,
        symmetric: bool = False,
        candidates: Literal["split", "train"] = "split",
        side: Literal["query", "document"] = "query",
    ) -> None:
        check_at_least("task.query_flops", query_flops, 0)
        check_at_least("task.document_flops", document_flops, 0)
        check_at_least("task.flops_warmup_steps", flops_warmup_steps, 0)
        super().__init__(objective, max_length, temperature, symmetric, candidates, side)
        self.flops_warmup_steps = flops_warmup_steps
        self.loss_weights = {**self.loss_weights, QUERY_FLOPS: query_flops, DOCUMENT_FLOPS: document_flops}
        self._own_weights = self.loss_weights
        self._tokenizer: Tokenizer | None = None

    @property
    def validation_weights(self) -> Mapping[str, float]:
        """Returns the weights without those of the regularization."""
        return {name: weight for name, weight in self.loss_weights.items() if name not in (QUERY_FLOPS, DOCUMENT_FLOPS)}

    def weight_factors(self, step: int) -> Mapping[str, float]:
        """Returns the factor of the regularization: the square of the share of the warm-up that the step completes."""
        if step + 1 >= self.flops_warmup_steps:
            return {}
        return dict.fromkeys((QUERY_FLOPS, DOCUMENT_FLOPS), ((step + 1) / self.flops_warmup_steps) ** 2)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the scores of masked words."""
        return SparseHead(encoder, config)

    def step_loss_sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums the terms of `SearchTask`, and `flops` of queries and documents times the number of queries."""
        weights, members, has_query = rows["weights"], rows["members"], rows["queries"] != NO_QUERY
        # A teacher's loss counts queries with at least two candidates.
        counted = POSITIVE + 1 if self.objective in TAUGHT else ANCHOR
        num_counted = (has_query & (members == counted)).sum()
        is_query = has_query & (members == ANCHOR)
        return {
            **super().step_loss_sums(rows),
            QUERY_FLOPS: flops(weights[is_query]) * num_counted,
            DOCUMENT_FLOPS: flops(weights[has_query & ~is_query]) * num_counted,
        }

    def texts_of_step(self, rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Score]:
        """Returns the targets of each text, and products of weights."""
        weights = rows["weights"]
        texts = {name: value for name, value in rows.items() if name != "weights"}
        return texts, lambda queries, documents: weights[queries] @ weights[documents].T

    def to_record(self) -> dict[str, Any]:
        """Returns the maximum length."""
        return {"max_length": self.max_length}

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """Builds one item per row, as `SearchTask`. Predictions name the words of this tokenizer."""
        self._tokenizer = tokenizer
        return super().build_source(rows, tokenizer)

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[Any]:
        """Returns the sparse vectors of the query and the document of each item."""
        weights = outputs["weights"].cpu().numpy()
        items: dict[int, list[SparseVector]] = {}
        for own, sequence_id in zip(weights, batch.sequence_ids[: batch.num_sequences].tolist(), strict=False):
            item, member = divmod(sequence_id, batch.group_size)
            if member <= POSITIVE:
                words = np.flatnonzero(own)
                vector = SparseVector(words.astype(np.int32), own[words], len(own))
                items.setdefault(item, []).append(vector)
        return list(items.values())

    def assemble(self, source: FlatSource | DrawnPairs, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns the `words` of the text of each row with their weights, largest first; for two texts the `score`."""
        return [
            {"words": self._named(texts[0])}
            if len(texts) == 1
            else {"score": float(self.index(texts[1:])(texts[:1])[0, 0])}
            for texts in decoded
        ]

    def _named(self, vector: SparseVector) -> dict[str, float]:
        assert self._tokenizer is not None
        order = np.argsort(-vector.weights, kind="stable")
        names = [self._tokenizer.backend.id_to_token(int(word)) or f"id {word}" for word in vector.words[order]]
        return dict(zip(names, vector.weights[order].tolist(), strict=True))

    def explained_scores(self, outputs: Mapping[str, Tensor], batch: PackedBatch, targets: Sequence[None]) -> Tensor:
        """Returns the score of the two texts of each pair."""
        pairs = outputs["weights"][: 2 * len(targets)].unflatten(0, (-1, 2))
        return (pairs[:, 0] * pairs[:, 1]).sum(dim=1)

    def score(self, source: Any, decoded: Sequence[Any]) -> dict[str, float]:
        """Returns the metrics of the search, and the mean `num_words` of queries and of their documents."""
        pairs = [texts for texts in decoded if len(texts) > POSITIVE]
        means = {
            f"{name}_words": float(np.mean([num_words(texts[member]) for texts in pairs])) if pairs else float("nan")
            for member, name in ((ANCHOR, "query"), (POSITIVE, "document"))
        }
        return {**super().score(source, decoded), **means}

    def index(self, candidates: Sequence[SparseVector]) -> Scorer:
        """Returns a function that computes the scores of queries with candidates.

        Args:
            candidates: Sparse vector of each candidate.
        """
        rows = np.repeat(np.arange(len(candidates)), [len(each.words) for each in candidates])
        words = torch.from_numpy(np.concatenate([each.words for each in candidates]).astype(np.int64))
        weights = torch.from_numpy(np.concatenate([each.weights for each in candidates]).astype(np.float64))
        shape = (len(candidates), candidates[0].vocab_size)
        indices = torch.stack([torch.from_numpy(rows), words])
        matrix = torch.sparse_coo_tensor(indices, weights, shape, check_invariants=False, is_coalesced=True)

        def scores(queries: Sequence[SparseVector]) -> np.ndarray:
            dense = torch.zeros(shape[1], len(queries), dtype=torch.float64)
            for column, query in enumerate(queries):
                dense[torch.from_numpy(query.words.astype(np.int64)), column] = torch.from_numpy(query.weights).double()
            return (matrix @ dense).T.numpy()

        return scores


def num_words(vector: SparseVector) -> float:
    """Counts the words of a vector. A weight below 0.01 counts its share of it, so that rounding changes no count."""
    return float(np.minimum(vector.weights / _SMALL, 1.0).sum())


def flops(weights: Tensor) -> Tensor:
    """Returns the sum over words of the squared mean weight: the expected products of a search with an inverted index.

    Paria et al. 2020 (arXiv:2004.05665, equation 4), as in Formal et al. 2021 (arXiv:2107.05720, equation 4).

    Args:
        weights: (texts, vocab) fp32, at least 0; without texts the result is 0.
    """
    return (weights.sum(dim=0) / max(1, len(weights))).square().sum()
