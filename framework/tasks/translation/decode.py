"""From found ids to text, and how near the texts of a split are to their references."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from framework.constants import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class FoundTarget:
    """What is kept of a search.

    Attributes:
        tokens: Ids, special ones included.
        score: Of `framework.tasks.translation.search`.
    """

    tokens: tuple[int, ...]
    score: float


def decode_targets(tokens: Tensor, scores: Tensor) -> list[FoundTarget]:
    """Brings what was found to the host.

    Args:
        tokens: (sequences, most tokens) int64, IGNORE_INDEX behind the end.
        scores: (sequences,) fp32.
    """
    return [
        FoundTarget(tuple(token for token in row if token != IGNORE_INDEX), score)
        for row, score in zip(tokens.tolist(), scores.tolist(), strict=True)
    ]


def corpus_scores(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu` (Papineni et al. 2002) and `chrf` (Popovic 2015), both of the whole corpus and in [0, 100].

    As sacrebleu has them by default (Post 2018, arXiv:1804.08771): BLEU with 13a tokens, case kept, exponential
    smoothing; chrF2 of 6 characters and no words.

    Args:
        texts: What was found.
        references: One for each.
    """
    # Not at the top: predicting and training without evaluation do not need it.
    import sacrebleu

    return {
        "bleu": float(sacrebleu.corpus_bleu(texts, [references]).score),
        "chrf": float(sacrebleu.corpus_chrf(texts, [references]).score),
    }


def sentence_scores(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """How near each text is by itself: chrF, in [0, 1], as sacrebleu's `sentence_chrf` has it by default."""
    import sacrebleu

    pairs = zip(texts, references, strict=True)
    return [float(sacrebleu.sentence_chrf(text, [reference]).score) / 100 for text, reference in pairs]
