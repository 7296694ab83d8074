"""Recommendation from texts: two towers that are one encoder, a user as the texts of what they liked before."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from framework.batch import PackedBatch
from framework.data.facts import SplitFacts, with_facts
from framework.data.layout import lay_out
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.files import parse_json
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.embedding.head import EmbeddingHead
from framework.tasks.examination import Examination, FoundItems, plain_examination
from framework.tasks.pooling import POOLINGS
from framework.tasks.recommendation.catalogue import CATALOGUE_FILE, Catalogue, build_catalogue, read_catalogue
from framework.tasks.recommendation.data import SPLITS, InteractionData, Interactions
from framework.tasks.recommendation.examine import examine_trial
from framework.tasks.recommendation.features import (
    LOSS_TERM,
    SearchSource,
    asked_source,
    known_likes,
    stretch_source,
)
from framework.tasks.recommendation.losses import Scoring, sampled_softmax
from framework.tasks.recommendation.scores import MODEL, Comparison, metrics_by_user
from framework.tasks.recommendation.search import Score, best_items, score_items, unseen_scores
from framework.tasks.recommendation.trial import Question, Trial, build_trial
from framework.tasks.step_level import SEQUENCE_IDS, StepLevelTask

_SHORTEST = 3
"""[CLS] a [SEP]"""


class RecommendationTask(StepLevelTask):
    """Which items a user may like next, by the texts of the items that the user liked before.

    The item tower is the encoder over the item's text, the vector of length 1. The user tower has no weights of its
    own: it is the mean of the item vectors of the last likes, later ones perhaps with more weight, brought to length 1.
    So a text is encoded once a step for all its uses (see `framework.tasks.recommendation.features`), a catalogue once
    for all users, histories of any length cost nothing in search, and an export is a plain embedding model.

    Args:
        max_history: How many of the last likes make the vector of a user; a step's stretches are that long too.
        history_decay: Weight of a like relative to the one after it, in (0, 1]; 1: the plain mean.
        max_item_tokens: Most tokens of an item's text, special tokens included; longer texts lose their end.
        pooling: A name in `framework.tasks.pooling`: "cls" or "mean".
        temperature: What cosines are divided by.
        popularity_prior: An item's score has this much of the logarithm of its share of all likes of the training: 0
            leaves ranking to the texts, 1 multiplies the likelihood that the texts give by that share.
        corrects_sampling: Whether the loss corrects for items being drawn as often as they are liked (`losses`).
        num_recommended: How many items prediction gives.

    Raises:
        ConfigError: A name is unknown or a number out of its range.
    """

    best_metric = "ndcg_at_10"
    best_mode = "max"
    wraps_epochs = False
    head_kind = "embedding"
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
        for name, value, least in (
            ("max_history", max_history, 1),
            ("max_item_tokens", max_item_tokens, _SHORTEST),
            ("num_recommended", num_recommended, 1),
            ("popularity_prior", popularity_prior, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} is {value}, it must be at least {least}.")
        if not 0 < history_decay <= 1:
            raise ConfigError(f"task.history_decay is {history_decay}, it must be above 0 and at most 1.")
        if pooling not in POOLINGS:
            raise ConfigError(f"task.pooling is {pooling!r}, it must be one of {', '.join(POOLINGS)}.")
        if not temperature > 0:
            raise ConfigError(f"task.temperature is {temperature}, it must be above 0.")
        self.scoring = Scoring(temperature, popularity_prior, max_history, history_decay)
        self.max_item_tokens = max_item_tokens
        self.pooling = pooling
        self.corrects_sampling = corrects_sampling
        self.num_recommended = num_recommended
        self.loss_weights = {LOSS_TERM: 1.0}
        self._folder: Path | None = None
        self._catalogue: Catalogue | None = None
        self._known = torch.zeros(0, dtype=torch.int64)

    def build_sources(
        self,
        data: InteractionData,
        tokenizer: Tokenizer,
        seed: int,  # noqa: ARG002  time splits, nothing is drawn
    ) -> dict[str, SequenceSource]:
        """Reads interactions and catalogue, and tokenises the texts."""
        interactions = data.load()
        likes = interactions.likes()
        self._catalogue = catalogue = build_catalogue(interactions)
        self._known = torch.from_numpy(known_likes(likes, len(catalogue.items)))
        texts = lay_out(catalogue.texts, None, tokenizer, self.max_item_tokens)
        sources: dict[str, SequenceSource] = {}
        for name in interactions.names:
            split = SPLITS.index(name)
            max_history = self.scoring.max_history
            source = stretch_source(likes, split, catalogue, texts, max_history, self.max_item_tokens)
            if split > 0:
                source.trial = build_trial(interactions, likes, split, catalogue)
            sources[name] = with_facts(source, _facts(interactions, split))
        return sources

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:  # noqa: ARG002  nothing is tied
        """The head, which has no weights."""
        return EmbeddingHead(POOLINGS[self.pooling], normalizes=True)

    def representations(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """A row for each sequence (`framework.tasks.recommendation.losses.Rows`)."""
        return {
            SEQUENCE_IDS: batch.sequence_ids,
            "embeddings": outputs["embeddings"],
            "members": batch.sequence_ids % batch.group_size,
            **batch.targets,
        }

    def step_loss_sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The softmax over the step, summed over likes that must be found (`recommendation`)."""
        self._known = self._known.to(rows["users"].device)
        num_items = len(self._opened_catalogue().items)
        return {LOSS_TERM: sampled_softmax(rows, self.scoring, self._known, num_items, self.corrects_sampling)}

    @property
    def class_scores(self) -> Mapping[str, str]:
        """None."""
        return {}

    def side_config(self) -> dict[str, Any]:
        """What an embedding model has: pooling, length, and that its vectors have length 1."""
        return {"pooling": self.pooling, "normalize": True, "max_length": self.max_item_tokens}

    def side_files(self) -> dict[str, str]:
        """The catalogue."""
        return {CATALOGUE_FILE: self._opened_catalogue().written()}

    def restore_files(self, folder: Path) -> None:
        """Knows where the catalogue is."""
        self._folder = folder

    def _opened_catalogue(self) -> Catalogue:
        if self._catalogue is None:
            assert self._folder is not None
            self._catalogue = read_catalogue(self._folder / CATALOGUE_FILE)
        return self._catalogue

    @property
    def fields(self) -> tuple[str, ...]:
        """What was liked, in the order of time."""
        return ("history",)

    @property
    def list_fields(self) -> tuple[str, ...]:
        """The same: ids of the catalogue, or texts."""
        return ("history",)

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks that the history is a list of ids or texts."""
        del tokenizer
        _history(row)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> SearchSource:
        """The catalogue and the texts of histories.

        Raises:
            DataError: The catalogue cannot be read.
        """
        histories = [_history(row) for row in rows]
        return asked_source(self._opened_catalogue(), histories, tokenizer, self.max_item_tokens)

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[np.ndarray]:
        """(hidden,) fp32 vector of the first text of each item; those that are searched have no other."""
        items = batch.sequence_ids[: batch.num_sequences] // batch.group_size
        is_first = np.diff(items.cpu().numpy(), prepend=-1) != 0
        return list(outputs["embeddings"][: batch.num_sequences].float().cpu().numpy()[is_first])

    def assemble(self, source: SequenceSource, decoded: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """The best `items` of each row that are not in its history, and their `scores`; without one the most liked."""
        assert isinstance(source, SearchSource)
        assert source.trial is not None
        ids = self._opened_catalogue().items
        told: list[dict[str, Any]] = []
        for _, scores in unseen_scores(source.trial.questions, self._scorer(np.stack(decoded))):
            for row in scores:
                best = best_items(row, self.num_recommended)
                items = [ids[place] for place in best]
                told.append({"history": source.records[len(told)], "items": items, "scores": row[best].tolist()})
        return told

    def _scorer(self, vectors: np.ndarray) -> Score:
        log_shares = self._opened_catalogue().log_shares
        return partial(score_items, vectors=vectors.astype(np.float64), log_shares=log_shares, scoring=self.scoring)

    @property
    def scores_predictions(self) -> bool:
        """Ranks are those among a whole catalogue."""
        return True

    def score(self, source: SequenceSource, decoded: Sequence[np.ndarray]) -> dict[str, float]:
        """`recall_at_K` and `ndcg_at_K` of model and baselines with their spread, see `Comparison.values`.

        Beside them `num_users`, who are asked, and `cold_start_share` of the likes, about which nothing is asked.
        Nothing of the split that is trained on.
        """
        assert isinstance(source, SearchSource)
        trial = source.trial
        if trial is None:
            return {}
        return {
            **self._compare(trial, decoded).values(),
            "num_users": float(len({question.user for question in trial.questions})),
            "cold_start_share": trial.num_cold / trial.num_likes,
        }

    def class_table(
        self, metrics: Mapping[str, Metric], source: SequenceSource, decoded: Sequence[np.ndarray]
    ) -> list[dict[str, Any]]:
        """The model and the baselines one below the other."""
        del metrics
        assert isinstance(source, SearchSource)
        return [] if source.trial is None else self._compare(source.trial, decoded).table()

    def examine(self, source: SequenceSource, found: FoundItems) -> Examination:
        """A row for each moment that is asked; of the split that is trained on lengths and losses."""
        assert isinstance(source, SearchSource)
        if source.trial is None:
            return plain_examination(found, [])
        scorer = self._scorer(self._catalogue_vectors(found.decoded))
        return examine_trial(source.trial, scorer, self._opened_catalogue(), found, self.scoring.max_history)

    def _catalogue_vectors(self, decoded: Sequence[np.ndarray]) -> np.ndarray:
        """(items, hidden); they stand behind those of the stretches."""
        return np.stack(decoded[len(decoded) - len(self._opened_catalogue().items) :])

    def _compare(self, trial: Trial, decoded: Sequence[np.ndarray]) -> Comparison:
        rankers: dict[str, Score] = {MODEL: self._scorer(self._catalogue_vectors(decoded))}
        rankers |= {name: partial(_same_for_all, scores) for name, scores in trial.baselines.items()}
        return Comparison({name: metrics_by_user(trial, score) for name, score in rankers.items()})


def _same_for_all(scores: np.ndarray, chunk: Sequence[Question]) -> np.ndarray:
    return np.tile(scores, (len(chunk), 1))


def _history(row: Row) -> list[str]:
    cell = row.values["history"].strip()
    try:
        found = parse_json(cell) if cell else []
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(entry, str | int) and str(entry).strip() for entry in found):
        raise DataError(
            f"{row.place}: 'history' is {cell[:60]!r}, it must be a list of ids or texts, none of them empty; correct "
            "the row."
        )
    return [str(entry).strip() for entry in found]


def _facts(interactions: Interactions, split: int) -> SplitFacts:
    """Counts interactions, likes and users of a split; facts about the files belong to `train`."""
    is_here = interactions.splits == split
    notes = {
        "likes": f"{int((is_here & interactions.is_liked).sum()):,}",
        "users": f"{len(np.unique(interactions.users[is_here])):,}",
    }
    read = interactions.facts if split == 0 else SplitFacts(unit=interactions.facts.unit)
    return replace(read, rows=int(is_here.sum()), notes={**read.notes, **notes})
