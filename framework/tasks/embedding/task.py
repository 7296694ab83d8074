"""Sentence embeddings: a bi-encoder that is trained by pairs of texts, by scores of pairs, or by labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.data.facts import range_of, with_facts
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.embedding.data import TextGroup, TextPairData
from framework.tasks.embedding.examine import examine_pairs, examine_search
from framework.tasks.embedding.features import DrawnPairs, labelled_source, match_source, scored_source, text_source
from framework.tasks.embedding.head import EmbeddingHead
from framework.tasks.embedding.losses import POSITIVE, cosent, info_nce, mean_over_sizes
from framework.tasks.embedding.scores import pair_scores, search_scores
from framework.tasks.examination import Examination, FoundItems
from framework.tasks.pooling import POOLINGS
from framework.tasks.step_level import SEQUENCE_IDS, StepLevelTask

_SHORTEST = 3
"""[CLS] a [SEP]"""

_EVALUATED_SEED = 0
"""Of second texts in splits that are evaluated, so that runs of several seeds compare."""


class EmbeddingTask(StepLevelTask):
    """One vector for each text. The loss compares all texts of a global step (`framework.tasks.embedding.losses`).

    Args:
        objective: "contrastive", for pairs that match and for labelled texts: InfoNCE; "similarity", for scored pairs:
            CoSENT.
        max_length: Most tokens of a sequence, special tokens included; longer texts lose their end.
        pooling: A name in `framework.tasks.pooling`: "cls" or "mean".
        normalize: Whether embeddings that are predicted have length 1; losses and metrics take cosines.
        temperature: What cosines are divided by in the loss.
        symmetric: contrastive: half of the loss is that each positive must find its anchor.
        matryoshka_sizes: The loss is the mean over embeddings cut to these numbers of channels, and whole ones.
        candidates: contrastive: what is searched in evaluation: "split", the split itself, or "train", what is trained
            on too: for labelled texts the training texts alone, for pairs the positives of both.

    Raises:
        ConfigError: A name is unknown or a number out of its range.
    """

    best_mode = "max"
    wraps_epochs = False
    head_kind = "embedding"
    changeable_keys = ("candidates", "normalize")

    def __init__(
        self,
        objective: Literal["contrastive", "similarity"] = "contrastive",
        max_length: int = 128,
        pooling: str = "mean",
        normalize: bool = True,
        temperature: float = 0.05,
        symmetric: bool = False,
        matryoshka_sizes: Sequence[int] = (),
        candidates: Literal["split", "train"] = "split",
    ) -> None:
        if objective not in ("contrastive", "similarity"):
            raise ConfigError(f"task.objective is {objective!r}, it must be contrastive or similarity.")
        if candidates not in ("split", "train"):
            raise ConfigError(f"task.candidates is {candidates!r}, it must be split or train.")
        if max_length < _SHORTEST:
            raise ConfigError(
                f"task.max_length is {max_length}, it must be at least {_SHORTEST}, special tokens included."
            )
        if pooling not in POOLINGS:
            raise ConfigError(f"task.pooling is {pooling!r}, it must be one of {', '.join(POOLINGS)}.")
        if not temperature > 0:
            raise ConfigError(f"task.temperature is {temperature}, it must be above 0.")
        sizes = list(matryoshka_sizes)
        if len(set(sizes)) < len(sizes) or min(sizes, default=1) < 1:
            raise ConfigError(f"task.matryoshka_sizes is {sizes}, it must hold different numbers from 1 on.")
        self.objective = objective
        self.max_length = max_length
        self.pooling = pooling
        self.normalize = normalize
        self.temperature = temperature
        self.smaller_sizes = sorted(sizes, reverse=True)
        self.candidates = candidates
        if objective == "similarity":
            self.loss_weights = {"cosent": 1.0}
            self.best_metric = "spearman"
        else:
            self.loss_weights = {"contrast": 0.5, "reverse_contrast": 0.5} if symmetric else {"contrast": 1.0}
            self.best_metric = "mrr"

    def build_sources(self, data: TextPairData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads and tokenises the rows of each split.

        Raises:
            ConfigError: The objective is not one of rows of this kind.
        """
        if (data.kind == "scored") != (self.objective == "similarity"):
            fitting = "similarity" if data.kind == "scored" else "contrastive"
            raise ConfigError(
                f"task.objective is {self.objective}, but the rows of the data are {data.kind}, for which it is "
                f"{fitting}; set it so, or data.score_column to what the file has."
            )
        pairs = data.load()
        sources: dict[str, SequenceSource] = {}
        for split, groups in pairs.splits.items():
            searched = pairs.splits["train"] if split != "train" and self.candidates == "train" else []
            drawn_by = seed if split == "train" else _EVALUATED_SEED
            source = self._source(data.kind, groups, searched, tokenizer, drawn_by)
            labels = [str(group.answer) for group in groups] if data.kind == "labelled" else []
            read = pairs.facts[split]
            if data.kind == "scored":
                read = replace(read, notes={"scores": range_of([float(group.answer or 0) for group in groups])})
            sources[split] = with_facts(source, read, labels)
        return sources

    def _source(
        self, kind: str, groups: list[TextGroup], searched: list[TextGroup], tokenizer: Tokenizer, seed: int
    ) -> FlatSource | DrawnPairs:
        terms = list(self.loss_weights)
        if kind == "scored":
            return scored_source(groups, terms, tokenizer, self.max_length)
        if kind == "labelled":
            return labelled_source(groups, searched, terms, tokenizer, self.max_length, seed)
        candidates = [group.texts[POSITIVE] for group in searched]
        return match_source(groups, candidates, terms, tokenizer, self.max_length)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:  # noqa: ARG002  nothing is tied
        """The head, which has no weights.

        Raises:
            ConfigError: Embeddings cannot be cut to a size.
        """
        if max(self.smaller_sizes, default=0) >= config.hidden_size:
            raise ConfigError(
                f"matryoshka_sizes has {self.smaller_sizes[0]}, but embeddings have {config.hidden_size} channels, and "
                "whole ones are always among the sizes; give smaller numbers."
            )
        return EmbeddingHead(POOLINGS[self.pooling], self.normalize)

    def representations(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """A row for each sequence (`framework.tasks.embedding.losses.Rows`)."""
        return {
            SEQUENCE_IDS: batch.sequence_ids,
            "embeddings": outputs["embeddings"],
            "members": batch.sequence_ids % batch.group_size,
            **batch.targets,
        }

    def step_loss_sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """InfoNCE summed over anchors (`contrast`) and over positives (`reverse_contrast`), or CoSENT (`cosent`)."""
        sizes = self._sizes(rows["embeddings"].shape[1])
        if self.objective == "similarity":
            return {"cosent": mean_over_sizes(lambda cut: cosent(cut, self.temperature), rows, sizes)}
        sums = mean_over_sizes(lambda cut: info_nce(cut, self.temperature), rows, sizes)
        # Without symmetry there is no weight for the second.
        return dict(zip(self.loss_weights, sums.unbind(), strict=False))

    def _sizes(self, width: int) -> list[int]:
        return [width, *self.smaller_sizes]

    @property
    def class_scores(self) -> Mapping[str, str]:
        """None."""
        return {}

    def side_config(self) -> dict[str, Any]:
        """Pooling, length, and whether embeddings have length 1."""
        return {"pooling": self.pooling, "normalize": self.normalize, "max_length": self.max_length}

    @property
    def fields(self) -> tuple[str, ...]:
        """The text."""
        return ("text",)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """One item of one text a row."""
        texts = [(row.values["text"],) for row in rows]
        return text_source(texts, {}, list(self.loss_weights), tokenizer, self.max_length)

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[np.ndarray]:
        """(1 or 2, hidden) fp32 vectors of the text and of its second one."""
        members = (batch.sequence_ids[: batch.num_sequences] % batch.group_size).cpu().numpy()
        is_kept = members <= POSITIVE
        vectors = outputs["embeddings"][: batch.num_sequences].float().cpu().numpy()[is_kept]
        # Parts before the first text and behind the last one would be empty.
        return np.split(vectors, np.flatnonzero(members[is_kept] == 0)[1:]) if len(vectors) else []

    def assemble(self, source: SequenceSource, decoded: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """`embedding` of each row, a list of numbers."""
        del source
        return [{"embedding": vectors[0].tolist()} for vectors in decoded]

    @property
    def scores_predictions(self) -> bool:
        """Ranks are those among a whole split."""
        return True

    def score(self, source: SequenceSource, decoded: Sequence[np.ndarray]) -> dict[str, float]:
        """`pair_scores` or `search_scores`; for each smaller size once more, by names that end with it."""
        assert isinstance(source, FlatSource | DrawnPairs)
        scores: Callable[..., dict[str, float]] = pair_scores if self.objective == "similarity" else search_scores
        values = {}
        for size in self._sizes(decoded[0].shape[1]):
            ending = f"_{size}" if size in self.smaller_sizes else ""
            found = scores(decoded, source.records, size)
            values.update({f"{name}{ending}": value for name, value in found.items()})
        return values

    def examine(self, source: SequenceSource, found: FoundItems) -> Examination:
        """`examine_pairs` or `examine_search`; the texts are the tokens."""
        assert isinstance(source, FlatSource | DrawnPairs)
        if self.objective == "similarity":
            return examine_pairs(source.records, found)
        return examine_search(source.records, found)
