"""Attacks that replace words by plausible others (BERT-Attack, Li et al. 2020, arXiv:2004.09984)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from framework.audits.audit import Case, Finding, ModelAudit, Prediction, Subject
from framework.audits.intervals import wilson
from framework.audits.labels import check_one_text, check_single_labels
from framework.audits.own_rows import check_editable, chosen_rows
from framework.audits.word_candidates import Words, open_masked_words, word_candidates
from framework.data.reading.rows import Row
from framework.errors import ConfigError, check_above_zero, check_at_least
from framework.modules.inference import Inference
from framework.runs.trained import Trained

_NAME = "attack"
_DECIMALS = 5
"""Decimals at which probabilities are compared. The way in which rows are packed changes later decimals."""


@dataclass
class _Attack:
    """Attack on one row.

    Attributes:
        original: Words of the row.
        label: Label of the row, which the model predicts.
        probability: Probability of the label for `current`.
        current: Words with the changes so far.
        order: Indices of the words that are still to be tried, most important first.
        candidates: Words for each index.
        changed: Indices of the changed words.
        queries: Number of predictions so far.
        prediction: Prediction of `current`.
    """

    original: Words
    label: str
    probability: float
    current: Words
    prediction: Prediction
    order: list[int] = field(default_factory=list)
    candidates: Mapping[int, Sequence[str]] = field(default_factory=dict)
    changed: list[int] = field(default_factory=list)
    queries: int = 1

    @property
    def has_succeeded(self) -> bool:
        """True if the model predicts another label."""
        return bool(self.prediction["label"] != self.label)

    def accept(self, words: Words, prediction: Prediction, index: int) -> None:
        """Changes a word."""
        self.current, self.prediction = words, prediction
        self.probability = prediction["probabilities"][self.label]
        self.changed.append(index)


class Attack(ModelAudit):
    """Share of correctly predicted rows whose prediction an attack makes wrong.

    The words of a row are ranked by the fall of the probability of its label when a word is deleted; BERT-Attack masks
    it instead. In this order a word is replaced by the candidate that changes the prediction, else by the one that
    lowers the probability most. The next words of all rows are tried in one packed pass.

    Args:
        candidates: Model with a masked-word head, which chooses the words: a pre-trained run, its export, or a
            published encoder.
        num_candidates: Number of its words for each place, before words that are no whole words are removed.
        max_changed: Largest share of the words of a row to change; one word may always be changed.
        max_queries: Largest number of predictions for a row.
        max_rows: Number of rows of the split, a seeded sample; None: all.
        runs: Folder of the run folders, for `candidates`.
        trust: Modules whose classes the run of `candidates` may name.

    Raises:
        ConfigError: A number is out of its range.
    """

    def __init__(
        self,
        candidates: str,
        num_candidates: int = 48,
        max_changed: float = 0.15,
        max_queries: int = 200,
        max_rows: int | None = 100,
        runs: str = "runs",
        trust: list[str] | None = None,
    ) -> None:
        check_at_least("audit.attack.num_candidates", num_candidates, 1)
        check_at_least("audit.attack.max_queries", max_queries, 4, "The default is 200.")
        check_above_zero("audit.attack.max_changed", max_changed, 0.15)
        if max_changed > 1:
            raise ConfigError(f"audit.attack.max_changed is {max_changed}. It is a share of words. Choose at most 1.")
        if max_rows is not None:
            check_at_least("audit.attack.max_rows", max_rows, 1, "Use null for all rows.")
        self._run = candidates
        self._num_candidates = num_candidates
        self._max_changed = max_changed
        self._max_queries = max_queries
        self._max_rows = max_rows
        self._runs = runs
        self._trust = trust or []

    def check(self, subject: Subject) -> None:
        """Reads the rows and the model of the candidates.

        Raises:
            ConfigError: The task does not predict one label for one text, or the model of the candidates has no
                masked-word head.
            CheckpointError: The model of the candidates cannot be read.
        """
        check_single_labels(subject, _NAME)
        self._field = check_one_text(subject, _NAME)
        records = check_editable(subject, _NAME, "Choose another audit")
        self._rows = [records[index] for index in chosen_rows(len(records), self._max_rows, subject.seed)]
        self._subject = subject
        self._masked_words: Trained = open_masked_words(
            self._run, self._runs, self._trust, self._num_candidates, f"audit.{_NAME}.candidates"
        )

    def measure(self, inference: Inference) -> Finding:
        """Attacks all rows in rounds."""
        texts = [Words.of(getattr(row, self._field)) for row in self._rows]
        first = self._predict(inference, [text.text for text in texts])
        attacks = [
            _Attack(text, row.label, prediction["probabilities"][row.label], text, prediction)
            for text, row, prediction in zip(texts, self._rows, first, strict=True)
            if prediction["label"] == row.label
        ]
        candidates = word_candidates(self._masked_words, inference, [attack.original for attack in attacks])
        for attack, own in zip(attacks, candidates, strict=True):
            attack.candidates = own
        self._rank_words(inference, attacks)
        active = attacks
        while active := [attack for attack in active if self._may_continue(attack)]:
            self._try_next_words(inference, active)
        return self._finding(attacks)

    def _predict(self, inference: Inference, texts: Sequence[str]) -> list[Prediction]:
        """Predicts texts, each different one once."""
        different = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        rows = [Row(index + 1, None, {self._field: text}) for text, index in different.items()]
        task = self._subject.task
        predictions = inference.predict(task.build_source(rows, self._subject.tokenizer)) if rows else []
        return [predictions[different[text]] for text in texts]

    def _rank_words(self, inference: Inference, attacks: Sequence[_Attack]) -> None:
        """Sets the order of the words of each row, by deleting each word that has candidates."""
        deleted: list[tuple[int, int, str]] = []
        for number, attack in enumerate(attacks):
            places = [index for index, words in sorted(attack.candidates.items()) if words]
            most = self._max_queries // 2
            if len(places) > most:
                places = [places[int(each)] for each in np.linspace(0, len(places) - 1, most)]
            attack.order = places
            if len(attack.original.words) > 1:
                deleted += [(number, index, attack.original.with_word(index, "").text) for index in places]
        falls: list[dict[int, float]] = [dict.fromkeys(attack.order, 0.0) for attack in attacks]
        predictions = self._predict(inference, [text for _, _, text in deleted])
        for (number, index, _), prediction in zip(deleted, predictions, strict=True):
            attack = attacks[number]
            attack.queries += 1
            falls[number][index] = round(attack.probability - prediction["probabilities"][attack.label], _DECIMALS)
        for attack, own in zip(attacks, falls, strict=True):
            attack.order = sorted(own, key=own.__getitem__, reverse=True)  # equal ones keep the order of the text

    def _may_continue(self, attack: _Attack) -> bool:
        most = max(1, math.floor(self._max_changed * len(attack.original.words)))
        return (
            not attack.has_succeeded
            and bool(attack.order)
            and len(attack.changed) < most
            and attack.queries < self._max_queries
        )

    def _try_next_words(self, inference: Inference, attacks: Sequence[_Attack]) -> None:
        """Tries the candidates of the next word of each row, and keeps the best one if it lowers the probability."""
        tried: list[tuple[_Attack, int, list[Words]]] = []
        for attack in attacks:
            index = attack.order.pop(0)
            words = attack.candidates[index][: self._max_queries - attack.queries]
            tried.append((attack, index, [attack.current.with_word(index, word) for word in words]))
        predictions = iter(self._predict(inference, [each.text for _, _, options in tried for each in options]))
        for attack, index, options in tried:
            results = [next(predictions) for _ in options]
            attack.queries += len(options)
            wrong = [place for place, result in enumerate(results) if result["label"] != attack.label]
            values = [round(result["probabilities"][attack.label], _DECIMALS) for result in results]
            best = wrong[0] if wrong else values.index(min(values))  # the most probable word that succeeds
            if wrong or values[best] < round(attack.probability, _DECIMALS):
                attack.accept(options[best], results[best], index)

    def _finding(self, attacks: Sequence[_Attack]) -> Finding:
        number, right = len(self._rows), len(attacks)
        succeeded = [attack for attack in attacks if attack.has_succeeded]
        changed = [len(attack.changed) / len(attack.original.words) for attack in succeeded]
        values = {
            "accuracy on the rows": right / number,
            "accuracy under attack": (right - len(succeeded)) / number,
            "mean share of changed words": float(np.mean(changed)) if changed else None,
            "mean predictions for a row": float(np.mean([attack.queries for attack in attacks])) if attacks else None,
        }
        succeeded.sort(key=lambda attack: len(attack.changed))
        return Finding(
            measure="right predictions that become wrong",
            rate=len(succeeded) / right if right else 0.0,
            interval=wilson(len(succeeded), right),
            num_cases=right,
            summary=f"Accuracy is {right / number:.1%} on {number:,} rows and {(right - len(succeeded)) / number:.1%} "
            f"under attack, with at most {self._max_changed:.0%} of the words changed.",
            parts=[{"value of": name, "value": value} for name, value in values.items()],
            worst=[_shown(attack) for attack in succeeded],
            notes=["The candidates fit their places, but no program checks that the meaning stays. Read the cases."],
        )


def _shown(attack: _Attack) -> Case:
    changes = ", ".join(
        f"{attack.original.words[index]} → {attack.current.words[index]}" for index in sorted(attack.changed)
    )
    text = f"{attack.original.text}\n→ {attack.current.text}"
    label = attack.prediction["label"]
    return Case(changes, text, attack.label, f"{label} ({attack.prediction['probabilities'][label]:.3f})")
