"""Text-based recommendation: two towers that share one encoder. A user is represented by the texts of earlier likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.data.examples.answers import parse_list
from framework.data.facts import SplitFacts, with_facts
from framework.data.layout import SHORTEST, check_max_length, lay_out
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError, check_above_zero, check_at_least, check_choice
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.embedding.head import EmbeddingHead
from framework.tasks.examination import Examination, ItemResults, default_examination
from framework.tasks.pooling import POOLINGS
from framework.tasks.recommendation.catalogue import CATALOGUE_FILE, Catalogue, build_catalogue, read_catalogue
from framework.tasks.recommendation.data import SPLITS, InteractionData, Interactions
from framework.tasks.recommendation.examine import examine_trial
from framework.tasks.recommendation.features import (
    LOSS_TERM,
    SearchSource,
    history_source,
    known_likes,
    segment_source,
)
from framework.tasks.recommendation.losses import Scoring, sampled_softmax
from framework.tasks.recommendation.scores import MODEL, Comparison, metrics_by_user
from framework.tasks.recommendation.search import Score, best_items, score_items, unseen_scores
from framework.tasks.recommendation.trial import Question, Trial, build_trial
from framework.tasks.step_level import StepLevelTask

if TYPE_CHECKING:
    from torchmetrics import Metric


class RecommendationTask(StepLevelTask):
    """Ranks items for a user by the texts of the items that the user liked before.

    The item tower is the encoder over the text of the item, with a vector of length 1. The user tower has no weights of
    its own: its vector is the mean of the item vectors of the last likes, optionally with more weight for later likes,
    scaled to length 1. So each text is encoded once per step for all its uses (see
    `framework.tasks.recommendation.features`), a catalogue is encoded once for all users, long histories cost nothing
    in search, and an export is an ordinary embedding model.

    Args:
        max_history: Number of last likes that form the vector of a user. Segments in a step have at most that many
            targets.
        history_decay: Weight of a like relative to the next later like, in (0, 1]. 1: the unweighted mean.
        max_item_tokens: Maximum number of tokens of an item's text, special tokens included. Longer texts are
            truncated.
        pooling: Name in `framework.tasks.pooling`: "cls" or "mean".
        temperature: Divisor of cosines.
        popularity_prior: Weight, in the score of an item, of the logarithm of its share of all training likes. 0: the
            texts alone decide. 1: the likelihood from the texts is multiplied by that share.
        corrects_sampling: Correct the loss for the fact that items are drawn as often as they are liked (`losses`).
        num_recommended: Number of items per prediction.

    Raises:
        ConfigError: A name is unknown or a number is out of range.
    """

    best_metric = "ndcg_at_10"
    best_mode = "max"
    wraps_epochs = False
    head_kind = "embedding"
    fields = ("history",)
    list_fields = ("history",)
    scores_predictions = True
    changeable_keys = ("num_recommended", "popularity_prior")

    def __init__(
        self,
        max_history: int = 20,
        history_decay: float = 1.0,
        max_item_tokens: int = 64,
        pooling: str = "mean",
        temperature: float = 0.1,
        popularity_prior: float = 1.0,
        corrects_sampling: bool = True,
        num_recommended: int = 10,
    ) -> None:
        check_at_least("task.max_history", max_history, 1)
        check_max_length("task.max_item_tokens", max_item_tokens, SHORTEST)
        check_at_least("task.num_recommended", num_recommended, 1)
        check_at_least("task.popularity_prior", popularity_prior, 0)
        if not 0 < history_decay <= 1:
            raise ConfigError(
                f"task.history_decay is {history_decay}. It must be above 0 and at most 1. Choose for example 1.0."
            )
        check_choice("task.pooling", pooling, POOLINGS)
        check_above_zero("task.temperature", temperature, 0.1)
        self.scoring = Scoring(temperature, popularity_prior, max_history, history_decay)
        self.max_item_tokens = max_item_tokens
        self.pooling = pooling
        self.corrects_sampling = corrects_sampling
        self.num_recommended = num_recommended
        self.loss_weights = {LOSS_TERM: 1.0}
        self._folder: Path | None = None
        self._catalogue: Catalogue | None = None
        self._known = torch.zeros(0, dtype=torch.int64)

    def build_sources(self, data: InteractionData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads interactions and catalogue, and tokenizes the texts."""
        interactions = data.load()
        likes = interactions.likes()
        self._catalogue = catalogue = build_catalogue(interactions)
        self._known = torch.from_numpy(known_likes(likes, len(catalogue.items)))
        texts = lay_out(catalogue.texts, None, tokenizer, self.max_item_tokens)
        sources: dict[str, SequenceSource] = {}
        for name in interactions.names:
            split = SPLITS.index(name)
            max_history = self.scoring.max_history
            source = segment_source(likes, split, catalogue, texts, max_history, self.max_item_tokens)
            if split > 0:
                source.trial = build_trial(interactions, likes, split, catalogue)
            sources[name] = with_facts(source, _facts(interactions, split))
        return sources

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the head, which has no weights."""
        return EmbeddingHead(POOLINGS[self.pooling], normalizes=True)

    def step_loss_sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums the softmax loss over all target likes of the step (`recommendation`)."""
        self._known = self._known.to(rows["users"].device)
        num_items = len(self._load_catalogue().items)
        return {LOSS_TERM: sampled_softmax(rows, self.scoring, self._known, num_items, self.corrects_sampling)}

    def to_record(self) -> dict[str, Any]:
        """Returns the settings of an embedding model: pooling, normalization and maximum length."""
        return {"pooling": self.pooling, "normalize": True, "max_length": self.max_item_tokens}

    def extra_files(self) -> dict[str, str]:
        """Returns the catalogue file."""
        return {CATALOGUE_FILE: self._load_catalogue().to_jsonl()}

    def restore_files(self, folder: Path) -> None:
        """Stores the folder of the catalogue file."""
        self._folder = folder

    def _load_catalogue(self) -> Catalogue:
        if self._catalogue is None:
            assert self._folder is not None
            self._catalogue = read_catalogue(self._folder / CATALOGUE_FILE)
        return self._catalogue

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks that the history is a list of item ids or texts."""
        _history(row)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> SearchSource:
        """Builds the sequences of the catalogue and of the texts of histories.

        Raises:
            DataError: The catalogue cannot be read.
        """
        histories = [_history(row) for row in rows]
        return history_source(self._load_catalogue(), histories, tokenizer, self.max_item_tokens)

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[np.ndarray]:
        """Returns the (hidden,) fp32 vector of the first text of each item. Catalogue items have only one text."""
        items = batch.sequence_ids[: batch.num_sequences] // batch.group_size
        is_first = np.diff(items.cpu().numpy(), prepend=-1) != 0
        return list(outputs["embeddings"][: batch.num_sequences].float().cpu().numpy()[is_first])

    def assemble(self, source: SearchSource, decoded: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Returns per row its `history`, the best `items` outside of it, and their `scores`.

        A row without a history gets the items with the most likes.
        """
        assert source.trial is not None
        ids = self._load_catalogue().items
        predictions: list[dict[str, Any]] = []
        for _, scores in unseen_scores(source.trial.questions, self._scorer(np.stack(decoded))):
            for row in scores:
                best = best_items(row, self.num_recommended)
                items = [ids[index] for index in best]
                history = source.records[len(predictions)]
                predictions.append({"history": history, "items": items, "scores": row[best].tolist()})
        return predictions

    def _scorer(self, vectors: np.ndarray) -> Score:
        log_shares = self._load_catalogue().log_shares
        return partial(score_items, vectors=vectors.astype(np.float64), log_shares=log_shares, scoring=self.scoring)

    def score(self, source: SearchSource, decoded: Sequence[np.ndarray]) -> dict[str, float]:
        """Returns `recall_at_K` and `ndcg_at_K` of model and baselines with standard errors, see `Comparison.values`.

        Also returns `num_users`, the number of users with questions, and `cold_start_share`, the share of likes without
        a question. Returns nothing for the training split.
        """
        trial = source.trial
        if trial is None:
            return {}
        return {
            **self._compare(trial, decoded).values(),
            "num_users": float(len({question.user for question in trial.questions})),
            "cold_start_share": trial.num_cold / trial.num_likes,
        }

    def class_table(
        self, metrics: Mapping[str, Metric], source: SearchSource, decoded: Sequence[np.ndarray]
    ) -> list[dict[str, Any]]:
        """Returns the rows of the comparison of the model with the baselines."""
        return [] if source.trial is None else self._compare(source.trial, decoded).table()

    def examine(self, source: SearchSource, results: ItemResults) -> Examination:
        """Builds one row per question. Rows of the training split have only lengths and losses."""
        if source.trial is None:
            return default_examination(results, [])
        scorer = self._scorer(self._catalogue_vectors(results.decoded))
        return examine_trial(source.trial, scorer, self._load_catalogue(), results, self.scoring.max_history)

    def _catalogue_vectors(self, decoded: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the (items, hidden) vectors of the catalogue, which follow those of the segments."""
        return np.stack(decoded[len(decoded) - len(self._load_catalogue().items) :])

    def _compare(self, trial: Trial, decoded: Sequence[np.ndarray]) -> Comparison:
        rankers: dict[str, Score] = {MODEL: self._scorer(self._catalogue_vectors(decoded))}
        rankers |= {name: partial(_same_for_all, scores) for name, scores in trial.baselines.items()}
        return Comparison({name: metrics_by_user(trial, score) for name, score in rankers.items()})


def _same_for_all(scores: np.ndarray, chunk: Sequence[Question]) -> np.ndarray:
    return np.tile(scores, (len(chunk), 1))


def _history(row: Row) -> list[str]:
    cell = row.values["history"].strip()
    entries = parse_list(cell) if cell else []
    if entries is None or not all(isinstance(entry, str | int) and str(entry).strip() for entry in entries):
        raise DataError(
            f"{row.location}: 'history' is {cell[:60]!r}. It must be a list of ids or texts, none empty. Correct the "
            "row."
        )
    return [str(entry).strip() for entry in entries]


def _facts(interactions: Interactions, split: int) -> SplitFacts:
    """Counts interactions, likes and users of a split. The facts about the files are part of `train`."""
    in_split = interactions.splits == split
    notes = {
        "likes": f"{int((in_split & interactions.is_liked).sum()):,}",
        "users": f"{len(np.unique(interactions.users[in_split])):,}",
    }
    read = interactions.facts if split == 0 else SplitFacts(unit=interactions.facts.unit)
    return replace(read, rows=int(in_split.sum()), notes={**read.notes, **notes})
