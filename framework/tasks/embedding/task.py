"""Sentence embeddings: a bi-encoder trained on pairs of texts, scored pairs, or labelled texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.data.flat_source import FlatSource
from framework.data.layout import SHORTEST, check_max_length
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, check_above_zero, check_choice
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.score_distillation import margin_losses, score_divergences
from framework.tasks.embedding.data import TextPairData
from framework.tasks.embedding.examine import examine_pairs, examine_search, examine_sets
from framework.tasks.embedding.features import DrawnPairs, LayOut, lay_out_alike, text_source
from framework.tasks.embedding.head import EmbeddingHead, item_vectors
from framework.tasks.embedding.losses import (
    FITTING,
    POSITIVE,
    cosent,
    info_nce,
    mean_over_sizes,
    taught_scores,
    term_weights,
)
from framework.tasks.embedding.mixed_sets import OBJECTIVES, JoinedSets, MixedSets, Source, without_further
from framework.tasks.embedding.more_texts import naming_set
from framework.tasks.embedding.prompts import SIDES, PromptedLayout, without_prompts
from framework.tasks.embedding.scores import Index, Scorer, cosine_scorer, pair_cosines, pair_scores, search_scores
from framework.tasks.embedding.search_sets import SearchSource, set_scores, set_table
from framework.tasks.embedding.sources import ItemBuilder, check_search, join_splits
from framework.tasks.examination import Examination, ItemResults
from framework.tasks.explanation import Explained, TokenSpans, locate_texts, one_item
from framework.tasks.pooling import POOLINGS
from framework.tasks.step_level import StepLevelTask

if TYPE_CHECKING:
    from torchmetrics import Metric

PAIR = ("text", "pair")
"""Fields of a pair of texts."""

TAUGHT = {"margin_mse": margin_losses, "kl": score_divergences}
"""Losses of objectives that follow the scores of a teacher."""


class EmbeddingTask(StepLevelTask):
    """Text embedding task. The loss compares all texts of a global step (`framework.tasks.embedding.losses`).

    Args:
        objective: "contrastive" (InfoNCE), for matching pairs and labelled texts; "similarity" (CoSENT), for scored
            pairs; "margin_mse" or "kl", for matching pairs with hard negatives and the scores of a teacher, which the
            cosines divided by the temperature follow (`framework.nn.score_distillation`); "simcse", for single texts:
            InfoNCE with the text itself under another dropout mask as its positive (Gao et al. 2021, arXiv:2104.08821,
            section 3).
        max_length: Maximum number of tokens of a sequence, special tokens included. Longer texts are truncated.
        pooling: Name in `framework.tasks.pooling`: "cls" or "mean".
        normalize: Scale predicted embeddings to length 1. Losses and metrics always use cosines.
        temperature: Divisor of cosines in the loss.
        symmetric: For "contrastive": half of the loss compares each positive with all anchors.
        matryoshka_sizes: Numbers of channels. The loss is the mean over embeddings truncated to these sizes and full
            embeddings.
        candidates: For "contrastive": search candidates of evaluation. "split": texts of the split. "train": training
            texts too. For labelled texts "train" means the training texts alone, for pairs the positives of both.
        prompts: Texts before each "query" and each "document"; null: none. Scored pairs and texts without a second text
            have queries only.
        side: Side of single texts that are predicted: "query" or "document". It selects their prompt.

    Raises:
        ConfigError: A name is unknown or a number is out of range.
    """

    best_mode = "max"
    wraps_epochs = False
    head_kind = "embedding"
    fields = ("text",)
    scores_predictions = True
    changeable_keys: tuple[str, ...] = ("candidates", "normalize", "objective", "side")
    layout_of: LayOut = staticmethod(lay_out_alike)
    score_name = "cosine"

    def __init__(
        self,
        objective: Literal["contrastive", "similarity", "margin_mse", "kl", "simcse"] = "contrastive",
        max_length: int = 128,
        pooling: str = "mean",
        normalize: bool = True,
        temperature: float = 0.05,
        symmetric: bool = False,
        matryoshka_sizes: Sequence[int] = (),
        candidates: Literal["split", "train"] = "split",
        prompts: Mapping[str, str] | None = None,
        side: Literal["query", "document"] = "query",
    ) -> None:
        check_choice("task.objective", objective, ("contrastive", "similarity", "simcse", *TAUGHT))
        check_choice("task.side", side, SIDES)
        check_choice("task.candidates", candidates, ("split", "train"))
        check_max_length("task.max_length", max_length, SHORTEST)
        check_choice("task.pooling", pooling, POOLINGS)
        check_above_zero("task.temperature", temperature, 0.05)
        sizes = list(matryoshka_sizes)
        if len(set(sizes)) < len(sizes) or min(sizes, default=1) < 1:
            raise ConfigError(
                f"task.matryoshka_sizes is {sizes}. Sizes must be at least 1 and different. Correct the list."
            )
        self.objective = objective
        self.max_length = max_length
        self.pooling = pooling
        self.normalize = normalize
        self.temperature = temperature
        self.smaller_sizes = sorted(sizes, reverse=True)
        self.candidates = candidates
        self.prompts = dict(prompts or {})
        self.side = side
        if self.prompts:
            self.layout_of = PromptedLayout(self.prompts)
        self.loss_weights = term_weights(objective, symmetric)
        self.objectives: list[str] = [objective]
        self._objectives_of_sets: dict[str, str] = {}
        if objective == "simcse":
            # Without dropout a text equals its positive, so there is nothing to search.
            self.best_metric, self.best_mode, self.scores_predictions = "loss", "min", False
        elif objective == "similarity":
            self.best_metric = "spearman"
        else:
            self.best_metric = "mrr"
        self.symmetric = symmetric
        self._own_weights = self.loss_weights

    @property
    def validation_weights(self) -> Mapping[str, float]:
        """Returns the terms of `objective`: further training sets are not validated."""
        return self._own_weights

    def build_sources(self, data: TextPairData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads and tokenizes the rows of each split.

        Raises:
            ConfigError: The objective does not fit the kind of the rows.
        """
        if data.more and self.head_kind != EmbeddingTask.head_kind:
            raise ConfigError(
                f"data.more has {next(iter(data.more))}, but {type(self).__name__} trains on one set. Set "
                "data.more=null, or choose task=embedding."
            )
        data = data.with_masks(tokenizer)
        pairs, judged = data.load(), data.load_judged()
        check_search(self.objective, judged)
        self._check_teacher(data)
        fitting = FITTING[data.kind]
        if pairs.splits and fitting != ("contrastive" if self.objective in TAUGHT else self.objective):
            raise ConfigError(
                f"task.objective is {self.objective}, but the rows of the data are {data.kind}. Such rows need the "
                f"objective {fitting}. Set task.objective={fitting}, or correct the columns of the data."
            )
        builder = ItemBuilder(tokenizer, self.max_length, self.layout_of, self.candidates == "train", seed)
        terms = list(self._own_weights)
        sources = builder.splits(data.kind, pairs, judged, terms, terms)
        if not data.more:
            return dict(sources)
        sets: dict[str, dict[str, Source]] = {"data.train": sources}
        for name, each in data.more_data().items():
            with naming_set(name):
                sets[name] = self._further(name, each.with_masks(tokenizer), builder)
        joined = join_splits(data, sets, [self.objectives.index(self._objective_of(name)) for name in sets])
        # Further sets are scored even if the objective itself has no score.
        self.scores_predictions |= any(type(each) is JoinedSets for each in joined.values())
        return dict(joined)

    def _further(self, name: str, data: TextPairData, builder: ItemBuilder) -> dict[str, Source]:
        """Builds the items of a further set, whose objective follows from its rows, and adds its loss terms."""
        objective = self._objectives_of_sets[name] = FITTING[data.kind]
        judged = data.load_judged()
        check_search(objective, judged)
        if objective == "simcse" and (data.validation or data.test):
            raise ConfigError(
                "texts alone have no metrics, so validation and test must be null. Remove them, or name the column of "
                "a second text or a label."
            )
        if objective not in self.objectives:
            self.objectives.append(objective)
        weights = term_weights(objective, self.symmetric)
        self.loss_weights = {**self.loss_weights, **weights}
        return builder.splits(data.kind, data.load(), judged, list(weights), ())

    def _objective_of(self, name: str) -> str:
        """Returns the objective of a set; the first set has that of the task."""
        return self._objectives_of_sets.get(name, self.objective)

    def _check_teacher(self, data: TextPairData) -> None:
        """Checks that the objective reads the scores of a teacher exactly if the data has them."""
        if self.objective in TAUGHT and data.train is not None and data.teacher_column is None:
            raise ConfigError(
                f"task.objective is {self.objective}, but data.teacher_column is null. This objective follows the "
                "scores of a teacher. Name their column, or set task.objective=contrastive."
            )
        if self.objective not in TAUGHT and data.teacher_column is not None:
            raise ConfigError(
                f"data.teacher_column is {data.teacher_column}, but task.objective is {self.objective}, which follows "
                f"no teacher. Set data.teacher_column=null, or task.objective={' or '.join(TAUGHT)}."
            )

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the head, which has no weights.

        Raises:
            ConfigError: A Matryoshka size is not smaller than the hidden size.
        """
        if max(self.smaller_sizes, default=0) >= config.hidden_size:
            raise ConfigError(
                f"matryoshka_sizes has {self.smaller_sizes[0]}, but embeddings have {config.hidden_size} channels. "
                "Sizes must be smaller, because the full size is always included. Choose smaller sizes."
            )
        return EmbeddingHead(POOLINGS[self.pooling], self.normalize)

    def step_loss_sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums InfoNCE over anchors (`contrast`) and over positives (`reverse_contrast`), or the one other term.

        With further training sets, rows of each objective are summed apart.
        """
        if OBJECTIVES not in rows:
            return self._sums(self.objective, rows)
        sums: dict[str, Tensor] = {}
        for index, objective in enumerate(self.objectives):
            is_own = rows[OBJECTIVES] == index
            own = self._sums(objective, {name: value[is_own] for name, value in rows.items()})
            sums |= {term: value + sums[term] if term in sums else value for term, value in own.items()}
        return sums

    def _sums(self, objective: str, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes = self._sizes(rows["embeddings"].shape[1])
        if objective == "similarity":
            return {"cosent": mean_over_sizes(lambda cut: cosent(cut, self.temperature), rows, sizes)}
        if objective in TAUGHT:
            losses = TAUGHT[objective]
            return {objective: mean_over_sizes(lambda cut: taught_scores(cut, self.temperature, losses), rows, sizes)}
        # "contrastive" and "simcse".
        sums = mean_over_sizes(lambda cut: info_nce(cut, self.temperature), rows, sizes)
        # If the loss is not symmetric, the second sum has no weight and is dropped.
        return dict(zip(term_weights(objective, self.symmetric), sums.unbind(), strict=False))

    def _sizes(self, width: int) -> list[int]:
        return [width, *self.smaller_sizes]

    def to_record(self) -> dict[str, Any]:
        """Returns pooling, normalization, maximum length, and prompts if there are any."""
        record = {"pooling": self.pooling, "normalize": self.normalize, "max_length": self.max_length}
        return record | ({"prompts": self.prompts} if self.prompts else {})

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """Builds one item per row: a text, and its second text if the row has one."""
        texts = [tuple(row.values[name] for name in PAIR if name in row.values) for row in rows]
        # Of a pair, the first text is a query and the second a document.
        alone = self.side == SIDES[1]
        is_document = np.array([alone if len(row) == 1 else index > 0 for row in texts for index in range(len(row))])
        terms = list(self.loss_weights)
        return text_source(texts, {}, terms, tokenizer, self.max_length, (), self.layout_of, is_document)

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[Any]:
        """Returns (1 or 2, hidden) fp32 vectors per item: of the text and, if present, of its second text."""
        return item_vectors(outputs["embeddings"], batch, most=POSITIVE + 1)

    def vector_size(self, config: EncoderConfig) -> int | None:
        """Returns the hidden size; None for a subclass with another head."""
        return config.hidden_size if self.head_kind == EmbeddingTask.head_kind else None

    def assemble(self, source: FlatSource | DrawnPairs, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns the `embedding` of each row as a list of numbers; for a pair the `cosine` of its two embeddings."""
        return [
            {"embedding": each[0].tolist()}
            if len(each) == 1
            else {"cosine": pair_cosines([each], each.shape[1]).item()}
            for each in decoded
        ]

    @property
    def explained_fields(self) -> tuple[tuple[str, ...], ...]:
        """Returns the fields of a pair: an embedding alone has no score."""
        return (PAIR,)

    def explained(
        self, source: FlatSource | DrawnPairs, decoded: Sequence[np.ndarray], name: str | None
    ) -> list[list[Explained]]:
        """Returns the cosine of each pair. Texts without a second text, and items with negatives, have no score.

        Items of further sets are left out.
        """
        source, decoded = without_further(source, decoded)
        has_pairs = source.group_size == len(PAIR)
        return [
            [Explained(item, None, self.score_name)] if has_pairs and len(vectors) == len(PAIR) else []
            for item, vectors in enumerate(decoded)
        ]

    def explained_scores(self, outputs: Mapping[str, Tensor], batch: PackedBatch, targets: Sequence[None]) -> Tensor:
        """Returns the cosine of the two embeddings of each pair."""
        pairs = outputs["embeddings"][: 2 * len(targets)].unflatten(0, (-1, 2))
        return nn.functional.cosine_similarity(pairs[:, 0], pairs[:, 1])

    def explained_spans(
        self, source: FlatSource | DrawnPairs, explained: Explained, values: Mapping[str, str], tokenizer: Tokenizer
    ) -> TokenSpans:
        """Locates the tokens of both texts. Those of prompts have no place in them."""
        ids = one_item(source, explained.item).input_ids.numpy()
        prompts = {name: self.prompts.get(side, "") for name, side in zip(PAIR, SIDES, strict=True)}
        located = locate_texts(ids, {name: prompts[name] + values[name] for name in PAIR}, tokenizer)
        return without_prompts(located, {name: values[name] for name in PAIR}, prompts)

    def score(self, source: Any, decoded: Sequence[np.ndarray]) -> dict[str, float]:
        """Returns `pair_scores` or `search_metrics`. Metrics of a smaller size have the size as name suffix.

        Metrics of a further set have its name as prefix.
        """
        if isinstance(source, MixedSets):
            raise ConfigError(
                "the split train has several data sets (data.more), which have no common metrics. Evaluate each set "
                "apart, or set data.more=null."
            )
        if not isinstance(source, JoinedSets):
            return self._scores(self.objective, source, decoded)
        values: dict[str, float] = {}
        for index, (name, each) in enumerate(source.sources.items()):
            own = self._scores(self._objective_of(name), each, decoded[source.items(name)])
            values |= {f"{name}_{metric}" if index else metric: value for metric, value in own.items()}
        return values

    def _scores(self, objective: str, source: Any, decoded: Sequence[np.ndarray]) -> dict[str, float]:
        """Returns the metrics of one data set; none for single texts."""
        if objective == "simcse":
            return {}
        values = {}
        for size in self._sizes(decoded[0].shape[1]):
            suffix = f"_{size}" if size in self.smaller_sizes else ""
            if objective == "similarity":
                by_metric = pair_scores(decoded, source.records, size)
            else:
                by_metric = self.search_metrics(source, decoded, partial(cosine_scorer, size=size))
            values.update({f"{name}{suffix}": value for name, value in by_metric.items()})
        return values

    def search_metrics(self, source: Any, decoded: Sequence[Any], index: Index) -> dict[str, float]:
        """Returns `set_scores` of BEIR folders, else `search_scores`."""
        if isinstance(source, SearchSource):
            return set_scores(decoded, source.sets, index)
        return search_scores(decoded, source.records, index)

    def class_table(self, metrics: Mapping[str, Metric], source: Any, decoded: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns a row of metrics for each of several BEIR folders; no rows for other data."""
        source, decoded = without_further(source, decoded)
        if not isinstance(source, SearchSource) or len(source.sets) == 1:
            return []
        return set_table(decoded, source.sets, self.index)

    def examine(self, source: Any, results: ItemResults) -> Examination:
        """Builds the rows of `examine_pairs`, `examine_search` or `examine_sets`. The report shows tokens as texts.

        With further sets, only the items of the data itself are examined.
        """
        losses = None if results.losses is None else without_further(source, results.losses)[1]
        decoded = without_further(source, results.decoded)[1]
        source, lengths = without_further(source, results.lengths)
        results = ItemResults(decoded, losses, lengths)
        if isinstance(source, SearchSource):
            return examine_sets(source, results, self.index)
        if self.objective == "simcse":
            return super().examine(source, results)
        if self.objective == "similarity":
            return examine_pairs(source.records, results)
        return examine_search(source.records, results, self.index)

    def index(self, candidates: Sequence[Any]) -> Scorer:
        """Returns a function that scores queries against candidates, for search over any texts.

        Args:
            candidates: Decoded text of each candidate: an entry of an item of `decode`.
        """
        return cosine_scorer(candidates, len(candidates[0]))
