"""Exposure of the canaries of a token store: how well a masked-word model has memorized random documents.

A score is the pseudo-log-likelihood of the secret after its prefix (Salazar et al. 2020, arXiv:1910.14659). Candidates
are other random secrets after the same prefix (Carlini et al. 2019, arXiv:1802.08232).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from framework.audits.audit import Case, Finding, ModelAudit, Subject
from framework.audits.exposure import WITHOUT_MEMORIZATION, chance, exposures, ranks
from framework.audits.intervals import wilson
from framework.audits.masked_copies import MaskedCopies, encoded_sentences, pseudo_log_likelihoods
from framework.audits.masked_words import masked_word_inference, masked_word_task
from framework.config.task_parts import build_data_component
from framework.data.preparation.canaries import (
    CANARIES,
    PREFIX_WORDS,
    SECRET_WORDS,
    Canary,
    canary_words,
    draw_texts,
    read_canaries,
)
from framework.data.reading.documents import text_hash
from framework.data.store_data import StoreData
from framework.errors import ConfigError, check_at_least
from framework.modules.inference import Inference

_DECIMALS = 4
"""Decimals of compared scores. The way in which copies are packed changes later decimals."""

_FIRST = 100
"""A canary is found if its rank is among the first one of this many candidates."""

_SECRET = np.arange(1 + PREFIX_WORDS, 1 + PREFIX_WORDS + SECRET_WORDS)
"""Positions of the secret, after [CLS] and the prefix."""

_Part = dict[str, str | int | float | None]


class Canaries(ModelAudit):
    """Exposure of the canaries of the store that the model was trained on.

    The rate of the audit is the share of the canaries that rank among the first 1 % of the candidates.

    Args:
        store: Folder of the store; None: the store of the run.
        num_candidates: Number of random secrets to which each one is compared.

    Raises:
        ConfigError: The number is too small.
    """

    def __init__(self, store: str | None = None, num_candidates: int = 1000) -> None:
        check_at_least("audit.canaries.num_candidates", num_candidates, _FIRST - 1)
        self._store = store
        self._num_candidates = num_candidates

    def check(self, subject: Subject) -> None:
        """Reads the canaries and draws their candidates.

        Raises:
            ConfigError: The model has no trained head of masked words, its store is not known, or its vocabulary or
                length does not suit the canaries.
            DataError: The store cannot be read, or has no canaries.
        """
        self._weights = subject.trained.weights
        task = masked_word_task(subject.task, self._weights)
        if task is None:
            raise ConfigError(
                f"{self._weights.source} has no trained masked-word head. The audit canaries compares probabilities of "
                "masked words. Audit a pre-training run, or an export of it."
            )
        self._task, self._tokenizer, self._seed = task, subject.tokenizer, subject.seed
        data = self._data(subject)
        self._canaries = read_canaries(data.opened.meta, data.store)
        self._words = canary_words(subject.tokenizer)
        length = max(map(len, encoded_sentences([canary.text for canary in self._canaries], subject.tokenizer)))
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
        self._is_trained, self._notes = self._training(data)

    def measure(self, inference: Inference) -> Finding:
        """Scores all canaries and candidates. Collective: all ranks must call."""
        masked_words = masked_word_inference(inference, self._weights, self._task)
        scores = np.stack([self._scores(masked_words, number) for number in range(len(self._canaries))])
        found_ranks = ranks(scores[:, 0], scores[:, 1:])
        bits = exposures(found_ranks, self._num_candidates)
        is_first = found_ranks * _FIRST <= self._num_candidates + 1
        judged = self._is_trained if self._is_trained.any() else ~self._is_trained
        number, count = int(judged.sum()), int(is_first[judged].sum())
        highest = float(np.log2(self._num_candidates + 1))
        order = np.argsort(found_ranks, kind="stable")
        return Finding(
            measure="canaries among the first 1 % of the candidates",
            rate=count / number,
            interval=wilson(count, number),
            num_cases=number,
            summary=f"The mean exposure of {number} canaries is {bits[judged].mean():.2f} bits and the largest "
            f"{bits[judged].max():.2f}, of at most {highest:.2f}. A model that has not seen them has a mean of "
            f"{WITHOUT_MEMORIZATION:.2f}, and reaches this one with a probability of {chance(bits[judged]):.2g}.",
            parts=list(self._parts(bits, is_first)),
            worst=[
                Case(
                    self._name(index),
                    self._canaries[index].text,
                    f"a rank at random, from 1 to {self._num_candidates + 1:,}",
                    f"rank {found_ranks[index]:g}, {bits[index]:.2f} bits",
                )
                for index in order.tolist()
                if is_first[index] and judged[index]
            ],
            notes=[
                *self._notes,
                f"Each secret is ranked among {self._num_candidates:,} random ones, so no exposure exceeds "
                f"{highest:.2f} bits. A canary that was in no training step counts as trained.",
            ],
        )

    def _data(self, subject: Subject) -> StoreData:
        """Returns the data of the run, or of the given store."""
        if self._store is not None:
            return StoreData(self._store)
        component = subject.trained.data
        if component is None or component.target is not StoreData:
            raise ConfigError(
                f"{self._weights.source} does not record the token store that it was trained on. Its canaries are read "
                "from there. Give audit.canaries.store=FOLDER."
            )
        data = build_data_component(subject.task, component)
        assert isinstance(data, StoreData)
        return data

    def _training(self, data: StoreData) -> tuple[np.ndarray, list[str]]:
        """Returns (canaries,) bool, False for canaries that the run did not train on, and notes."""
        number = len(self._canaries)
        if self._store is not None:
            note = f"All canaries of {Path(data.store).name} count as trained, because the run's split is not read."
            return np.ones(number, dtype=bool), [note]
        weight = (data.weights or {}).get(CANARIES, 1.0)
        if weight == 0:
            return np.zeros(number, dtype=bool), [
                f"data.weights.{CANARIES} of the run is 0, so no canary was trained: the numbers are those of chance."
            ]
        hashes = np.array([text_hash(canary.text) for canary in self._canaries], dtype=np.uint64)
        is_trained = data.splits(hashes)["train"]
        notes = [] if weight == 1 else [f"An epoch of the run repeats the copies of each canary {weight:g} times."]
        held_out = int((~is_trained).sum())
        if held_out:
            notes.append(f"{held_out} of {number} canaries are in the validation split and were not trained.")
        return is_trained, notes

    def _scores(self, inference: Inference, number: int) -> np.ndarray:
        """Returns (1 + candidates,) scores of the secret of a canary and of its candidates."""
        canary = self._canaries[number]
        drawn = draw_texts(self._words, self._num_candidates, SECRET_WORDS, self._seed, "candidates", number)
        secrets = [canary.secret, *drawn]
        ids = encoded_sentences([f"{canary.prefix} {secret}" for secret in secrets], self._tokenizer)
        copies = MaskedCopies(ids, [_SECRET] * len(ids), self._tokenizer.mask_id)
        return pseudo_log_likelihoods(inference, copies, len(ids)).round(_DECIMALS)

    def _name(self, index: int) -> str:
        return f"canary {index + 1}, {_copies(self._canaries[index])}"

    def _parts(self, bits: np.ndarray, is_first: np.ndarray) -> Sequence[_Part]:
        """Returns the rows of the table: all canaries, those with equal numbers of copies, and each."""
        repeats = np.array([canary.repeats for canary in self._canaries])
        groups = {"all trained": self._is_trained, "not trained": ~self._is_trained}
        for number in np.unique(repeats).tolist():
            groups[_copies(self._canaries[repeats.tolist().index(number)])] = self._is_trained & (repeats == number)
        rows = [_part(name, chosen, bits, is_first) for name, chosen in groups.items() if chosen.any()]
        each = np.eye(len(bits), dtype=bool)
        return rows + [_part(self._name(index), each[index], bits, is_first) for index in range(len(bits))]


def _copies(canary: Canary) -> str:
    return "1 copy" if canary.repeats == 1 else f"{canary.repeats} copies"


def _part(name: str, chosen: np.ndarray, bits: np.ndarray, is_first: np.ndarray) -> _Part:
    return {
        "canaries": name,
        "number": int(chosen.sum()),
        "mean_exposure": float(bits[chosen].mean()),
        "largest_exposure": float(bits[chosen].max()),
        "chance": chance(bits[chosen]),
        "among_first_1_percent": float(is_first[chosen].mean()),
    }
