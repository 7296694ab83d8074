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
    """Returns means over questions; each question counts with its best true answer.

    Args:
        predictions: One answer per question, "" for no answer.
        truths: True answers of each question, empty for an unanswerable question.
        unit: Key of SEGMENTS.

    Returns:
        `exact_match` and `f1` in [0, 1] (the script prints percent). If only some questions are answerable, also the
        means of each kind: `has_answer_*` and `no_answer_*`.
    """
    segments = SEGMENTS[unit]
    exact, f1 = [], []
    for prediction, answers in zip(predictions, truths, strict=True):
        # As in the script: answers that normalise to nothing are dropped; an unanswerable question has an empty one.
        accepted = [each for each in map(segments, answers) if each] or [[]]
        exact.append(max(exact_match(segments(prediction), each) for each in accepted))
        f1.append(max(segment_f1(segments(prediction), each) for each in accepted))
    has_answer = [bool(answers) for answers in truths]
    scores = {"exact_match": _mean(exact), "f1": _mean(f1)}
    if len(set(has_answer)) == 2:
        for kind, is_answerable in (("has_answer", True), ("no_answer", False)):
            for name, values in (("exact_match", exact), ("f1", f1)):
                chosen = [value for value, has in zip(values, has_answer, strict=True) if has == is_answerable]
                scores[f"{kind}_{name}"] = _mean(chosen)
    return scores


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
