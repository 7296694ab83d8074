"""Exposure of canaries: how well a model has memorized random texts of its training data.

Canaries are ranked among random candidates (Carlini et al. 2019, arXiv:1802.08232).
"""

from collections.abc import Sequence

import numpy as np

from framework.audits.audit import Case, Finding, ModelAudit, Subject
from framework.audits.canary_scores import CanaryScores, StoreScores, TableScores
from framework.audits.exposure import WITHOUT_MEMORIZATION, chance, exposures, ranks
from framework.audits.intervals import wilson
from framework.errors import DataError, check_at_least
from framework.modules.inference import Inference

_FIRST = 100
"""A canary is found if its rank is among the first one of this many candidates."""

_Part = dict[str, str | int | float | None]


class Canaries(ModelAudit):
    """Exposure of the canaries that the model was trained on, of a token store or of a labelled table.

    The rate of the audit is the share of the canaries that rank among the first 1 % of the candidates.

    Args:
        store: Folder of a token store; None: the data of the run.
        num_candidates: Number of random texts to which each canary is compared.

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
            ConfigError: The model cannot have been trained on canaries, or does not suit those of the store
                (`StoreScores`).
            DataError: The store cannot be read, or has no canaries.
        """
        of_rows = TableScores.of_run(subject, self._num_candidates) if self._store is None else None
        self._scores: CanaryScores = of_rows or StoreScores(subject, self._store, self._num_candidates)

    def measure(self, inference: Inference) -> Finding:
        """Scores all canaries and candidates. Collective: all ranks must call.

        Raises:
            DataError: A score is not finite.
        """
        canaries, is_trained = self._scores.canaries, self._scores.is_trained
        scores = np.stack([self._scores.of(inference, index) for index in range(len(canaries))])
        if not np.isfinite(scores).all():
            raise DataError(
                f"{int((~np.isfinite(scores)).sum()):,} scores of canaries and candidates are not finite, so canaries "
                "cannot be ranked. Check the weights of the model."
            )
        found_ranks = ranks(scores[:, 0], scores[:, 1:])
        bits = exposures(found_ranks, self._num_candidates)
        is_first = found_ranks * _FIRST <= self._num_candidates + 1
        judged = is_trained if is_trained.any() else ~is_trained
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
                    canaries[index].text,
                    f"a rank at random, from 1 to {self._num_candidates + 1:,}",
                    f"rank {found_ranks[index]:g}, {bits[index]:.2f} bits",
                )
                for index in order.tolist()
                if is_first[index] and judged[index]
            ],
            notes=[
                *self._scores.notes,
                f"Each canary is ranked among {self._num_candidates:,} random ones, so no exposure exceeds "
                f"{highest:.2f} bits. A canary that was in no training step counts as trained.",
            ],
        )

    def _name(self, index: int) -> str:
        return f"canary {index + 1}, {_copies(self._scores.canaries[index].repeats)}"

    def _parts(self, bits: np.ndarray, is_first: np.ndarray) -> Sequence[_Part]:
        """Returns the rows of the table: all canaries, those with equal numbers of copies, and each."""
        is_trained = self._scores.is_trained
        repeats = np.array([canary.repeats for canary in self._scores.canaries])
        groups = {"all trained": is_trained, "not trained": ~is_trained}
        groups |= {_copies(number): is_trained & (repeats == number) for number in np.unique(repeats).tolist()}
        rows = [_part(name, chosen, bits, is_first) for name, chosen in groups.items() if chosen.any()]
        each = np.eye(len(bits), dtype=bool)
        return rows + [_part(self._name(index), each[index], bits, is_first) for index in range(len(bits))]


def _copies(number: int) -> str:
    return "1 copy" if number == 1 else f"{number} copies"


def _part(name: str, chosen: np.ndarray, bits: np.ndarray, is_first: np.ndarray) -> _Part:
    return {
        "canaries": name,
        "number": int(chosen.sum()),
        "mean_exposure": float(bits[chosen].mean()),
        "largest_exposure": float(bits[chosen].max()),
        "chance": chance(bits[chosen]),
        "among_first_1_percent": float(is_first[chosen].mean()),
    }
