"""Exact match and F1 of answers, computed as in the evaluation script of SQuAD 2.0.

Rajpurkar et al. 2018 (arXiv:1806.03822, section 5); the normalisation is that of 2016 (arXiv:1606.05250, section 6.1).

Chinese segments are characters, as in MLQA's script (Lewis et al. 2019, arXiv:1910.07475, section 5) and in CMRC 2018:
with "characters" each Chinese character is a segment, and punctuation of all scripts is removed, but no articles.
Departure: CJK extensions and compatibility characters are Chinese too.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from framework.metrics.row_ratio import RowRatio

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))
_CHINESE = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f])")


def word_segments(text: str) -> list[str]:
    """Returns the words of an English answer in lower case, without ASCII punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split()


def character_segments(text: str) -> list[str]:
    """Returns single Chinese characters, and words of other text, in lower case without punctuation."""
    kept = "".join(each for each in text.lower() if not _is_punctuation(each))
    return _CHINESE.sub(r" \1 ", kept).split()


SEGMENTS: Mapping[str, Callable[[str], list[str]]] = {"words": word_segments, "characters": character_segments}


def exact_match(prediction: Sequence[str], truth: Sequence[str]) -> float:
    """Returns 1 if the segments are equal, else 0."""
    return float(prediction == truth)


def segment_f1(prediction: Sequence[str], truth: Sequence[str]) -> float:
    """Returns F1 of the bags of segments, in [0, 1]; if one is empty, 1 if both are, else 0."""
    if not prediction or not truth:
        return float(prediction == truth)
    num_same = (Counter(prediction) & Counter(truth)).total()
    return 2 * num_same / (len(prediction) + len(truth))


def score_answers(predictions: Sequence[str], truths: Sequence[Sequence[str]], unit: str = "words") -> dict[str, float]:
    """Returns means over questions of the metrics of `answer_ratios`, in [0, 1] (the script prints percent)."""
    return {name: ratio.total() for name, ratio in answer_ratios(predictions, truths, unit).items()}


def answer_ratios(
    predictions: Sequence[str], truths: Sequence[Sequence[str]], unit: str = "words"
) -> dict[str, RowRatio]:
    """Scores each question with its best true answer.

    Args:
        predictions: One answer per question, "" for no answer.
        truths: True answers of each question, empty for an unanswerable question.
        unit: Key of SEGMENTS.

    Returns:
        `exact_match` and `f1`, means over questions. If only some questions are answerable, also the means of each
        kind: `has_answer_*` and `no_answer_*`.
    """
    segments = SEGMENTS[unit]
    scores = np.zeros((2, len(predictions)))
    for row, (prediction, answers) in enumerate(zip(predictions, truths, strict=True)):
        # As in the script: answers that normalise to nothing are dropped; an unanswerable question has an empty one.
        accepted = [each for each in map(segments, answers) if each] or [[]]
        scores[0, row] = max(exact_match(segments(prediction), each) for each in accepted)
        scores[1, row] = max(segment_f1(segments(prediction), each) for each in accepted)
    has_answer = np.array([bool(answers) for answers in truths], dtype=np.float64)
    kinds = {"": np.ones(len(predictions))}
    if len(np.unique(has_answer)) == 2:
        kinds |= {"has_answer_": has_answer, "no_answer_": 1 - has_answer}
    return {
        f"{kind}{name}": RowRatio(values * chosen, chosen)
        for kind, chosen in kinds.items()
        for name, values in zip(("exact_match", "f1"), scores, strict=True)
    }


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
