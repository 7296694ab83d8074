"""Scores of canaries and of their candidates: in a token store by masked words, in a labelled table by the loss."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from framework.audits.audit import Subject
from framework.audits.masked_copies import MaskedCopies, encoded_sentences, pseudo_log_likelihoods
from framework.audits.masked_words import masked_word_inference, masked_word_task
from framework.audits.row_losses import ChosenItems, item_losses
from framework.data.canaries import (
    CANARIES,
    PREFIX_WORDS,
    SECRET_WORDS,
    Canary,
    canary_words,
    draw_canaries,
    draw_labels,
    draw_texts,
    read_canaries,
)
from framework.data.examples.table import TableData
from framework.data.reading.documents import text_hash
from framework.data.store_data import StoreData
from framework.errors import ConfigError
from framework.modules.inference import Inference
from framework.runs.task_parts import build_data_component
from framework.tasks.sequence_classification.features import classification_source
from framework.tasks.sequence_classification.task import SequenceClassificationTask

_DECIMALS = 4
"""Decimals of compared scores. The way in which sequences are packed changes later decimals."""

_SECRET = np.arange(1 + PREFIX_WORDS, 1 + PREFIX_WORDS + SECRET_WORDS)
"""Positions of the secret, after [CLS] and the prefix."""


class CanaryScores(ABC):
    """Canaries of a model, and the scores by which they are ranked.

    Attributes:
        canaries: Canaries.
        is_trained: (canaries,) bool, False for canaries that the run did not train on.
        notes: Sentences on canaries that were not trained.
    """

    canaries: Sequence[Canary]
    is_trained: np.ndarray
    notes: Sequence[str]

    @abstractmethod
    def of(self, inference: Inference, index: int) -> np.ndarray:
        """Returns (1 + candidates,) float64 scores of a canary and of its candidates; larger ones are preferred.

        Collective: all ranks must call.

        Args:
            inference: Model on its device.
            index: Index of the canary.
        """


class StoreScores(CanaryScores):
    """Pseudo-log-likelihoods of the secrets of a token store (Salazar et al. 2020, arXiv:1910.14659).

    Candidates are random secrets after the same prefix.

    Args:
        subject: Model that is audited.
        store: Folder of the store; None: the store of the run.
        num_candidates: Number of candidates of each canary.

    Raises:
        ConfigError: The model has no trained head of masked words, its store is not known, or its vocabulary or length
            does not suit the canaries.
        DataError: The store cannot be read, or has no canaries.
    """

    def __init__(self, subject: Subject, store: str | None, num_candidates: int) -> None:
        self._weights, self._tokenizer, self._seed = subject.trained.weights, subject.tokenizer, subject.seed
        task = masked_word_task(subject.task, self._weights)
        if task is None:
            raise ConfigError(
                f"{self._weights.source} has no trained masked-word head, and its training rows have no canaries. The "
                "audit canaries compares probabilities of masked words, or losses of rows. Audit a pre-training run on "
                "a store with corpus.canaries=20, or a run of sequence classification with data.canaries=20."
            )
        self._task = task
        self._num_candidates = num_candidates
        data = StoreData(store) if store is not None else self._data_of_run(subject)
        self.canaries = read_canaries(data.opened.meta, data.store)
        self._words = canary_words(subject.tokenizer)
        length = max(map(len, encoded_sentences([canary.text for canary in self.canaries], subject.tokenizer)))
        expected = _SECRET[-1] + 2
        if length != expected:
            raise ConfigError(
                f"the tokenizer of the model divides a canary of {data.store} into {length} tokens instead of "
                f"{expected}. Canaries are words of the vocabulary of the store. Audit a model with this vocabulary."
            )
        if task.sequence_length < expected:
            raise ConfigError(
                f"task.sequence_length is {task.sequence_length}, but a canary has {expected} tokens. Sequences of the "
                "model must hold a canary. Audit a model with longer sequences."
            )
        number = len(self.canaries)
        self.is_trained, self.notes = np.ones(number, dtype=bool), []
        if store is not None:
            name = Path(store).name
            self.notes = [f"All canaries of {name} count as trained, because the split of the training is not read."]
        else:
            self._find_trained(data)

    def of(self, inference: Inference, index: int) -> np.ndarray:
        """Masks each word of the secret once."""
        canary = self.canaries[index]
        drawn = draw_texts(self._words, self._num_candidates, SECRET_WORDS, self._seed, "candidates", index)
        ids = encoded_sentences([f"{canary.prefix} {each}" for each in (canary.secret, *drawn)], self._tokenizer)
        copies = MaskedCopies(ids, [_SECRET] * len(ids), self._tokenizer.mask_id)
        masked_words = masked_word_inference(inference, self._weights, self._task)
        return pseudo_log_likelihoods(masked_words, copies, len(ids)).round(_DECIMALS)

    def _data_of_run(self, subject: Subject) -> StoreData:
        component = subject.trained.data
        if component is None or component.target is not StoreData:
            raise ConfigError(
                f"{self._weights.source} does not record the token store that it was trained on. Its canaries are read "
                "from there. Give audit.canaries.store=FOLDER."
            )
        data = build_data_component(subject.task, component)
        assert isinstance(data, StoreData)
        return data

    def _find_trained(self, data: StoreData) -> None:
        """Finds the canaries that the run held out for validation or left out by weight."""
        weight = (data.weights or {}).get(CANARIES, 1.0)
        if weight == 0:
            self.is_trained[:] = False
            note = (
                f"data.weights.{CANARIES} of the run is 0, so no canary was trained: the numbers are those of chance."
            )
            self.notes = [note]
            return
        hashes = np.array([text_hash(canary.text) for canary in self.canaries], dtype=np.uint64)
        self.is_trained = data.splits(hashes)["train"]
        self.notes = [] if weight == 1 else [f"An epoch of the run repeats the copies of each canary {weight:g} times."]
        held_out = int((~self.is_trained).sum())
        if held_out:
            number = len(self.canaries)
            self.notes.append(f"{held_out} of {number} canaries are in the validation split and were not trained.")


class TableScores(CanaryScores):
    """Negative losses of the canaries of a labelled table. Candidates are random texts with the label of the canary.

    Args:
        subject: Run of sequence classification, or an export of it.
        data: Its data, with canaries; the files are not read.
        num_candidates: Number of candidates of each canary.
    """

    def __init__(self, subject: Subject, data: TableData, num_candidates: int) -> None:
        settings = data.canary_settings
        assert settings is not None and isinstance(subject.task, SequenceClassificationTask)
        self._task, self._tokenizer, self._seed = subject.task, subject.tokenizer, subject.seed
        self._num_candidates = num_candidates
        self.canaries = draw_canaries(settings, subject.tokenizer)
        self._labels = draw_labels(settings, subject.task.labels)
        self._words = canary_words(subject.tokenizer)
        self.is_trained, self.notes = np.ones(len(self.canaries), dtype=bool), []

    @classmethod
    def of_run(cls, subject: Subject, num_candidates: int) -> "TableScores | None":
        """Returns the scores of a run, or an export of it, whose training rows have canaries; None for others."""
        layout = subject.trained.data_layout
        if layout is None or not isinstance(subject.task, SequenceClassificationTask):
            return None
        data = build_data_component(subject.task, layout.component(object))
        return cls(subject, data, num_candidates) if isinstance(data, TableData) and data.canaries else None

    def of(self, inference: Inference, index: int) -> np.ndarray:
        """Compares losses for the label of the canary."""
        num_words = PREFIX_WORDS + SECRET_WORDS
        drawn = draw_texts(self._words, self._num_candidates, num_words, self._seed, "candidates", index)
        texts = [self.canaries[index].text, *drawn]
        answers, task = [self._labels[index]] * len(texts), self._task
        source = classification_source(texts, None, answers, task.problem, self._tokenizer, task.max_length)
        losses = item_losses(inference, ChosenItems(source, np.arange(len(texts)))).losses
        return -losses
