"""Base of tasks that search for documents by another score than the cosine of two pooled vectors."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from framework.data.planning.plan import SequenceSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, check_above_zero, check_choice
from framework.tasks.embedding.data import TextPairData
from framework.tasks.embedding.losses import ANCHOR, anchors_and_candidates, candidate_lists, contrast, term_weights
from framework.tasks.embedding.scores import Scorer
from framework.tasks.embedding.task import TAUGHT, EmbeddingTask

Score = Callable[[Tensor, Tensor], Tensor]
"""Function from indices of texts, (queries,) and (documents,), to their (queries, documents) fp32 scores."""


class SearchTask(EmbeddingTask):
    """Search with the data, the losses and the metrics of `EmbeddingTask`, over another score.

    The data are matching pairs: `text` is a query, `pair` and the hard negatives are documents.

    Args:
        objective: "contrastive", "margin_mse" or "kl", as in `EmbeddingTask`, with scores instead of cosines.
        max_length: Maximum number of tokens of a sequence, special tokens included.
        temperature: Divisor of scores in the loss.
        symmetric: For "contrastive": half of the loss compares each positive with all queries.
        candidates: Search candidates of evaluation: "split" or "train".
        side: Side of single texts that are predicted: "query" or "document".

    Raises:
        ConfigError: A name is unknown or a number is out of range.
    """

    changeable_keys = ("candidates", "objective", "side")

    def __init__(
        self,
        objective: Literal["contrastive", "margin_mse", "kl"],
        max_length: int,
        temperature: float,
        symmetric: bool,
        candidates: Literal["split", "train"],
        side: Literal["query", "document"],
    ) -> None:
        check_choice("task.objective", objective, ("contrastive", *TAUGHT))
        check_above_zero("task.temperature", temperature, 1.0)
        super().__init__(
            objective, max_length, temperature=temperature, symmetric=symmetric, candidates=candidates, side=side
        )

    def build_sources(self, data: TextPairData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads and tokenizes the rows of each split.

        Raises:
            ConfigError: The rows are no matching pairs.
        """
        if data.kind != "matches":
            raise ConfigError(
                f"the rows of the data are {data.kind}, which do not say which text is a query and which is a "
                "document. This task needs matching pairs. Set data.pair_column to the column of the documents, and "
                "data.score_column and data.label_column to null, or choose task=embedding."
            )
        return super().build_sources(data, tokenizer, seed)

    @abstractmethod
    def texts_of_step(self, rows: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Score]:
        """Returns the texts of a step, with `members` and further targets (texts,), and the function that scores them.

        Args:
            rows: Rows of `representations`, ordered by sequence id.
        """

    @abstractmethod
    def index(self, candidates: Sequence[Any]) -> Scorer:
        """Returns a function that scores queries against candidates; see `EmbeddingTask`."""

    def step_loss_sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums InfoNCE over queries (`contrast`) and over positives (`reverse_contrast`), or the loss of a teacher."""
        texts, score = self.texts_of_step(rows)
        texts["indices"] = torch.arange(len(texts["members"]), device=texts["members"].device)
        if self.objective in TAUGHT:
            return {self.objective: self._taught(texts, score)}
        anchor, candidate = anchors_and_candidates(texts)
        scores = score(anchor["indices"], candidate["indices"]) / self.temperature
        # logsumexp is undefined over an empty dim.
        sums = contrast(scores, anchor, candidate) if len(scores) else scores.sum() * scores.new_zeros(2)
        return dict(zip(term_weights(self.objective, self.symmetric), sums.unbind(), strict=False))

    def _taught(self, texts: Mapping[str, Tensor], score: Score) -> Tensor:
        is_anchor = texts["members"] == ANCHOR
        scores = score(texts["indices"][is_anchor], texts["indices"])
        if "teacher_scores" not in texts or not len(scores):
            return scores.sum() * 0.0
        own = scores.gather(0, (is_anchor.cumsum(0) - 1)[None])[0]
        return TAUGHT[self.objective](*candidate_lists(own / self.temperature, texts)).sum()

    def score(self, source: Any, decoded: Sequence[Any]) -> dict[str, float]:
        """Returns the metrics of the search."""
        return self.search_metrics(source, decoded, self.index)
