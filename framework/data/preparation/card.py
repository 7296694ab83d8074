"""Statistics of a token store: counts, lengths, and numbers of dropped documents.

They are gathered while the store is written. Their state takes a few kilobytes, and a killed preparation resumes from
it. `framework.data.preparation.card_picture` draws them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from framework import ragged

BINS_PER_DOUBLING = 8
_LARGEST_EXPONENT = 24
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_DROPPED = ("duplicates", "near_duplicates", "excluded", "empty", "skipped_rows")


def length_edges(bins_per_doubling: int) -> np.ndarray:
    """Returns ascending int64 edges of bins of integers from 1 to 2**24, with about equal widths on a log scale.

    Each length below `bins_per_doubling` has its own bin.
    """
    exponents = np.arange(_LARGEST_EXPONENT * bins_per_doubling + 1) / bins_per_doubling
    return np.unique(np.ceil(2.0**exponents).astype(np.int64))


_EDGES = length_edges(BINS_PER_DOUBLING)


class Lengths:
    """Histogram of lengths in tokens.

    Args:
        counts: (bins,) initial count of each bin; missing trailing bins are 0; None: all 0.
        total: Sum of all lengths.
        maximum: Largest length; 0 if there is none.
    """

    def __init__(self, counts: Sequence[int] | None = None, total: int = 0, maximum: int = 0) -> None:
        self.counts = np.zeros(len(_EDGES) - 1, dtype=np.int64)
        if counts is not None:
            self.counts[: len(counts)] = counts
        self.total = total
        self.maximum = maximum

    def add(self, lengths: np.ndarray) -> None:
        """Adds positive lengths; lengths beyond the last edge are counted in the last bin."""
        if len(lengths) == 0:
            return
        bins = np.minimum(np.searchsorted(_EDGES, lengths, side="right") - 1, len(self.counts) - 1)
        self.counts += np.bincount(bins, minlength=len(self.counts))
        self.total += int(lengths.sum())
        self.maximum = max(self.maximum, int(lengths.max()))

    def state(self) -> dict[str, Any]:
        """Returns the constructor arguments that recreate this object, as JSON values."""
        return {"counts": np.trim_zeros(self.counts, "b").tolist(), "total": self.total, "maximum": self.maximum}

    def quantile(self, share: float) -> float:
        """Returns the length that this share of all does not exceed; exact for short lengths, within 9 % for others."""
        ends = np.cumsum(self.counts)
        rank = max(share * ends[-1], 1.0)
        index = int(np.searchsorted(ends, rank))
        first, past = _EDGES[index], _EDGES[index + 1]
        within = (rank - (ends[index] - self.counts[index])) / self.counts[index]
        return float(min(first + within * (past - first - 1), self.maximum))

    def content(self) -> dict[str, Any]:
        """Returns mean, quantiles, maximum, and the bins from the first to the last non-empty one, as JSON values."""
        num_lengths = int(self.counts.sum())
        if num_lengths == 0:
            return {"mean": None, "quantiles": {}, "maximum": 0, "histogram": {"edges": [], "counts": []}}
        nonempty = np.flatnonzero(self.counts)
        first, past = int(nonempty[0]), int(nonempty[-1]) + 1
        return {
            "mean": self.total / num_lengths,
            "quantiles": {f"{share:g}": round(self.quantile(share), 1) for share in _QUANTILES},
            "maximum": self.maximum,
            "histogram": {
                "edges": _EDGES[first : past + 1].tolist(),
                "counts": self.counts[first:past].tolist(),
            },
        }


@dataclass
class _Tokens:
    """Number of tokens with known ids, and the number of unknown tokens among them."""

    seen: int = 0
    unknown: int = 0


class CardBuilder:
    """Gathers the statistics of a store, one record batch per call.

    Args:
        unk_id: Id of the unknown token.
    """

    def __init__(self, unk_id: int) -> None:
        self._unk_id = unk_id
        self._tokens = _Tokens()
        self._documents = Lengths()
        self._sentences = Lengths()

    def add(self, input_ids: np.ndarray | None, sentence_lengths: np.ndarray, document_sentences: np.ndarray) -> None:
        """Adds documents in the form that `StoreWriter.add` takes.

        Args:
            input_ids: (tokens,) ids of all sentences, end to end; None if they are not available.
            sentence_lengths: (sentences,) number of tokens of each sentence, all positive.
            document_sentences: (documents,) number of sentences of each document, all positive.
        """
        if input_ids is not None:
            self._tokens.seen += len(input_ids)
            self._tokens.unknown += int(np.count_nonzero(input_ids == self._unk_id))
        self._sentences.add(sentence_lengths)
        starts = ragged.starts(document_sentences)
        self._documents.add(np.add.reduceat(sentence_lengths.astype(np.int64), starts))

    def state(self) -> dict[str, Any]:
        """Returns the statistics gathered so far, as JSON values."""
        return {
            "unk_id": self._unk_id,
            "tokens": asdict(self._tokens),
            "documents": self._documents.state(),
            "sentences": self._sentences.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "CardBuilder":
        """Returns a builder that continues from a state that `state` returned."""
        builder = cls(state["unk_id"])
        builder._tokens = _Tokens(**state["tokens"])
        builder._documents = Lengths(**state["documents"])
        builder._sentences = Lengths(**state["sentences"])
        return builder

    def content(
        self, counts: Mapping[str, int], sources: Sequence[Mapping[str, Any]], packing: Mapping[int, float]
    ) -> dict[str, Any]:
        """Returns the content of the card as JSON values.

        Args:
            counts: Counts of the preparation: dropped documents by reason (duplicates, near_duplicates, excluded,
                empty, skipped_rows; personal_data if present), bytes, files and vocab_size; missing ones count as 0.
            sources: Facts about each source (name, documents).
            packing: Packing efficiency in [0, 1] by sequence length in tokens; may be empty.

        Returns:
            Documents (read, kept, and dropped by reason; an unreadable row counts as a document), the shares of
            duplicates and near-duplicates among the documents read, totals, lengths, `unknown_token_rate` (None if no
            ids were added), sources and packing efficiency.
        """
        kept = int(self._documents.counts.sum())
        reasons = (*_DROPPED, "personal_data") if "personal_data" in counts else _DROPPED
        dropped = {reason: int(counts.get(reason, 0)) for reason in reasons}
        read = kept + sum(dropped.values())
        return {
            "documents": {"read": read, "kept": kept, **dropped},
            "duplicate_rate": dropped["duplicates"] / read if read else 0.0,
            "near_duplicate_rate": dropped["near_duplicates"] / read if read else 0.0,
            "files": int(counts.get("files", 0)),
            "bytes": int(counts.get("bytes", 0)),
            "sentences": int(self._sentences.counts.sum()),
            "tokens": self._documents.total,
            "vocab_size": int(counts.get("vocab_size", 0)),
            "unknown_token_rate": self._tokens.unknown / self._tokens.seen if self._tokens.seen else None,
            "tokens_per_document": self._documents.content(),
            "tokens_per_sentence": self._sentences.content(),
            "sources": [dict(source) for source in sources],
            "packing_efficiency": {str(length): float(share) for length, share in sorted(packing.items())},
        }
