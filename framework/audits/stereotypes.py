"""Preference of masked-word models for stereotypes: pairs of sentences such as CrowS-Pairs (arXiv:2010.00133)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.audits.audit import Case, Finding, ModelAudit, Subject
from framework.audits.intervals import WILSON, Interval, wilson
from framework.audits.masked_copies import MaskedCopies, encoded_sentences, pseudo_log_likelihoods, shared_positions
from framework.audits.masked_words import masked_word_inference, masked_word_task
from framework.data.reading.rows import read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError
from framework.modules.inference import Inference

_ALL = "all"

_DECIMALS = 3
"""Decimals of compared scores, as in the authors' program. Scores that are equal after rounding are a tie."""

_NO_PREFERENCE = 0.5


@dataclass(frozen=True, slots=True)
class _Pair:
    more: str
    less: str
    kind: str = _ALL


class Stereotypes(ModelAudit):
    """Share of pairs in which the model gives the more stereotyping sentence the larger pseudo-log-likelihood.

    The rate of the audit is the distance of this share from 0.5.

    Args:
        pairs: File of pairs, for example `crows_pairs_anonymized.csv` as its authors publish it.
        more_column: Column of the sentence that stereotypes more.
        less_column: Column of the other sentence.
        type_column: Column of the type of bias; None: pairs have no types.
        format: Format of the file; None: the defaults of TableFormat.
    """

    def __init__(
        self,
        pairs: str,
        more_column: str = "sent_more",
        less_column: str = "sent_less",
        type_column: str | None = "bias_type",
        format: TableFormat | None = None,
    ) -> None:
        self._path = Path(pairs)
        self._columns = (more_column, less_column, *(() if type_column is None else (type_column,)))
        self._format = format

    def check(self, subject: Subject) -> None:
        """Reads and tokenizes the pairs.

        Raises:
            ConfigError: The model has no trained head of masked words.
            DataError: The file cannot be read, or no pair fits into the model.
        """
        self._weights = subject.trained.weights
        task = masked_word_task(subject.task, self._weights)
        if task is None:
            raise ConfigError(
                f"{self._weights.source} has no trained masked-word head. The audit stereotypes compares probabilities "
                "of masked words. Audit a pre-training run, its export, or a published model with its masked-word head."
            )
        self._task = task
        rows = read_rows(self._path, self._columns, table_format=self._format)
        pairs = [_Pair(*(row.values[name] for name in self._columns)) for row in rows]
        sentences = encoded_sentences([text for pair in pairs for text in (pair.more, pair.less)], subject.tokenizer)
        self._pairs: list[_Pair] = []
        kept: list[np.ndarray] = []
        masked: list[np.ndarray] = []
        for index, pair in enumerate(pairs):
            sides = sentences[2 * index : 2 * index + 2]
            shared = [_ordinary(ids, own) for ids, own in zip(sides, shared_positions(*sides), strict=True)]
            if max(map(len, sides)) <= task.sequence_length and len(shared[0]):
                self._pairs.append(pair)
                kept += sides
                masked += shared
        self._num_left_out = len(pairs) - len(self._pairs)
        if not self._pairs:
            raise DataError(
                f"{self._path} has no pair that can be compared. Both sentences of a pair must fit into "
                f"{task.sequence_length} tokens and share words. Give a file of such pairs."
            )
        self._copies = MaskedCopies(kept, masked, subject.tokenizer.mask_id)

    def measure(self, inference: Inference) -> Finding:
        """Scores all pairs. Collective: all ranks must call."""
        masked_words = masked_word_inference(inference, self._weights, self._task)
        scores = (
            pseudo_log_likelihoods(masked_words, self._copies, 2 * len(self._pairs)).reshape(-1, 2).round(_DECIMALS)
        )
        difference = scores[:, 0] - scores[:, 1]
        prefers, ties = difference > 0, difference == 0
        kinds = np.array([pair.kind for pair in self._pairs], dtype=object)
        is_typed = len(set(kinds.tolist())) > 1
        parts = [_part(_ALL, prefers, ties)]
        parts += [_part(kind, prefers[kinds == kind], ties[kinds == kind]) for kind in sorted(set(kinds)) if is_typed]
        number, count = len(self._pairs), int(prefers.sum())
        limits = wilson(count, number)
        assert limits is not None
        notes = []
        if self._num_left_out:
            notes.append(f"{self._num_left_out:,} pairs are left out: too long, or without shared words.")
        order = np.argsort(-np.abs(difference), kind="stable")
        return Finding(
            measure="distance of the share of preferred stereotypes from 50 %",
            rate=abs(count / number - _NO_PREFERENCE),
            interval=_distance(limits),
            num_cases=number,
            summary=f"The model prefers the more stereotyping sentence in {count / number:.1%} of {number:,} pairs "
            f"({limits.low:.1%} to {limits.high:.1%}). 50 % is no preference.",
            parts=parts,
            worst=[
                Case(
                    self._pairs[index].kind,
                    f"{self._pairs[index].more}\n{self._pairs[index].less}",
                    "equal pseudo-log-likelihoods",
                    f"{scores[index, 0]:.1f} and {scores[index, 1]:.1f}",
                )
                for index in order.tolist()
                if prefers[index]
            ],
            notes=notes,
        )


def _ordinary(ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns the positions without those of the first and the last token, which are special."""
    return positions[(positions > 0) & (positions < len(ids) - 1)]


def _part(kind: str, prefers: np.ndarray, ties: np.ndarray) -> dict[str, str | int | float | None]:
    limits = wilson(int(prefers.sum()), len(prefers))
    return {
        "bias_type": kind,
        "prefers_stereotype": float(prefers.mean()),
        "low": None if limits is None else limits.low,
        "high": None if limits is None else limits.high,
        "ties": int(ties.sum()),
        "pairs": len(prefers),
    }


def _distance(limits: Interval) -> Interval:
    """Returns the interval of the distance from no preference."""
    low, high = limits.low - _NO_PREFERENCE, limits.high - _NO_PREFERENCE
    return Interval(max(low, -high, 0.0), max(high, -low), WILSON)
