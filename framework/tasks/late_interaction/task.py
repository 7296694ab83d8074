"""Late interaction (ColBERT): queries and documents are compared token by token."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from framework.batch import DUMMY_SEQUENCE_ID, PackedBatch
from framework.data.flat_source import FlatSource
from framework.data.layout import SHORTEST, check_max_length
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import check_at_least
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.max_sim import max_sim
from framework.tasks.embedding.features import DrawnPairs
from framework.tasks.embedding.losses import POSITIVE
from framework.tasks.embedding.scores import Scorer
from framework.tasks.embedding.search_task import Score, SearchTask
from framework.tasks.embedding.task import PAIR
from framework.tasks.explanation import ExactExplanation, one_item
from framework.tasks.late_interaction.head import LateInteractionHead
from framework.tasks.late_interaction.layout import IS_SCORED, Side, SidedLayout
from framework.tasks.late_interaction.matches import explain_matches
from framework.tasks.step_level import SEQUENCE_IDS


class LateInteractionTask(SearchTask):
    """Text search by MaxSim over the vectors of tokens (Khattab and Zaharia 2020, arXiv:2004.12832).

    Args:
        objective: "contrastive", "margin_mse" or "kl", as in `EmbeddingTask`, with MaxSim instead of cosines.
        width: Number of channels of a token's vector.
        query_length: Maximum number of tokens of a query, marker and special tokens included.
        document_length: The same for documents.
        query_marker: Marker of queries, after the first special token: a token of the vocabulary such as "[unused0]",
            or else a text before the text.
        document_marker: The same for documents.
        expand_queries: Append [MASK] tokens to each query up to `query_length`. They attend and are attended to, and
            count in the score.
        skip_punctuation: Leave punctuation marks of documents out of scores.
        temperature: Divisor of scores in the loss.
        symmetric: Half of the loss compares each positive with all queries.
        candidates: Search candidates of evaluation. "split": documents of the split. "train": also those of training.
        side: Side of single texts that are predicted: "query" or "document".

    Raises:
        ConfigError: A name is unknown or a number is out of range.
    """

    head_kind = "late_interaction"

    def __init__(
        self,
        objective: Literal["contrastive", "margin_mse", "kl"] = "contrastive",
        width: int = 128,
        query_length: int = 32,
        document_length: int = 180,
        query_marker: str = "[Q] ",
        document_marker: str = "[D] ",
        expand_queries: bool = False,
        skip_punctuation: bool = True,
        temperature: float = 1.0,
        symmetric: bool = False,
        candidates: Literal["split", "train"] = "split",
        side: Literal["query", "document"] = "query",
    ) -> None:
        check_at_least("task.width", width, 1)
        check_max_length("task.query_length", query_length, SHORTEST)
        check_max_length("task.document_length", document_length, SHORTEST)
        super().__init__(objective, max(query_length, document_length), temperature, symmetric, candidates, side)
        self.width = width
        self.sides = SidedLayout(
            Side("query", query_marker, query_length, expand_queries),
            Side("document", document_marker, document_length),
            skip_punctuation,
        )
        self.layout_of = self.sides

    @property
    def explains_predictions(self) -> bool:
        """Returns False: nothing is attributed, because `exact_explanation` states the terms of a score."""
        return False

    def exact_explanation(
        self, source: FlatSource, item: int, decoded: Any, values: Mapping[str, str], tokenizer: Tokenizer
    ) -> ExactExplanation:
        """Returns the matches of the tokens of the query, see `explain_matches`."""
        texts = {name: values[name] for name in PAIR}
        return explain_matches(one_item(source, item), decoded, texts, self.sides, tokenizer)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the projection."""
        return LateInteractionHead(config.hidden_size, self.width)

    def representations(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Returns one row per token: its vector, and the index and targets of its sequence.

        Tokens that do not count are marked as dummies, which the gathering drops.
        """
        num_tokens = len(batch.input_ids)
        sequences = torch.arange(len(batch.sequence_ids), device=batch.input_ids.device)
        owners = torch.repeat_interleave(sequences, batch.cu_seqlens.diff(), output_size=num_tokens)
        ids = batch.sequence_ids[owners]
        return {
            SEQUENCE_IDS: torch.where(batch.targets[IS_SCORED] > 0, ids, DUMMY_SEQUENCE_ID),
            "vectors": outputs["vectors"],
            "members": ids % batch.group_size,
            **{name: value[owners] for name, value in batch.targets.items() if name != IS_SCORED},
        }

    def texts_of_step(self, rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Score]:
        """Returns the targets of each text, and MaxSim of texts."""
        _, lengths = rows[SEQUENCE_IDS].unique_consecutive(return_counts=True)
        firsts = lengths.cumsum(0) - lengths
        texts = {name: value[firsts] for name, value in rows.items() if name not in (SEQUENCE_IDS, "vectors")}
        return texts, partial(max_sim, rows["vectors"], lengths)

    def to_record(self) -> dict[str, Any]:
        """Returns the settings that other libraries need to read the model."""
        query, document = self.sides.query, self.sides.document
        return {
            "max_length": self.max_length,
            "query_length": query.max_length,
            "document_length": document.max_length,
            "query_marker": query.marker,
            "document_marker": document.marker,
            "expand_queries": query.is_expanded,
            "skip_punctuation": self.sides.skips_punctuation,
        }

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[Any]:
        """Returns the scored vectors of the query and the document of each item: (tokens, width) fp32 each."""
        vectors, is_scored = outputs["vectors"].float().cpu().numpy(), batch.targets[IS_SCORED].cpu().numpy() > 0
        ids = batch.sequence_ids[: batch.num_sequences].tolist()
        items: dict[int, list[np.ndarray]] = {}
        begin = 0
        for sequence_id, length in zip(ids, batch.lengths, strict=False):
            item, member = divmod(sequence_id, batch.group_size)
            if member <= POSITIVE:
                own = slice(begin, begin + length)
                items.setdefault(item, []).append(vectors[own][is_scored[own]])
            begin += length
        return list(items.values())

    def assemble(self, source: FlatSource | DrawnPairs, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns the `vectors` of each row, a list for each token that counts; for two texts the `score`."""
        return [
            {"vectors": texts[0].tolist()}
            if len(texts) == 1
            else {"score": float(self.index(texts[1:])(texts[:1])[0, 0])}
            for texts in decoded
        ]

    def index(self, candidates: Sequence[np.ndarray]) -> Scorer:
        """Returns a function that computes MaxSim of queries with candidates.

        Args:
            candidates: (tokens, width) vectors of each candidate.
        """
        return lambda queries: _max_sim_of(queries, candidates)


@torch.no_grad()
def _max_sim_of(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> np.ndarray:
    texts = [*queries, *documents]
    lengths = torch.tensor([len(text) for text in texts])
    indices = torch.arange(len(texts)).split([len(queries), len(documents)])
    return max_sim(torch.from_numpy(np.concatenate(texts)), lengths, *indices).double().numpy()
