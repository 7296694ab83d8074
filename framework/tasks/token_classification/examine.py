"""Errors of token classification: entities that were missed, found where there are none, or given another type."""

from collections.abc import Callable, Sequence

import numpy as np

from framework.metrics.entity_f1 import EntitySpan, count_entities, entity_spans, overall
from framework.tasks.examination import Examination, ExaminedRow, FoundItems, Outcomes, count_confusions
from framework.tasks.token_classification.decode import join_parts, predict_tags
from framework.tasks.token_classification.features import Example, Part

NO_ENTITY = "(none)"

Join = Callable[[Sequence[str]], str]


def examine_entities(
    parts: Sequence[Part], found: FoundItems, tags: Sequence[str], types: Sequence[str], join: Join
) -> Examination:
    """A row for each sentence, whose score is its entity F1 (1 where there is no entity and none is found).

    An entity is confused with another where first and last word are the same; else one is missed (taken for NO_ENTITY)
    and the other is spurious. Right ones by row and column are thus recall and precision of a type.

    Args:
        parts: Records of the split.
        found: For its items.
        tags: The tag set in the order of scores.
        types: Of the entities.
        join: Function that joins words if the sentence has no text.
    """
    examples, scores = join_parts(parts, found.decoded)
    paths = predict_tags(scores, tags)
    losses, lengths = _sums_by_row(parts, found, len(examples))
    rows: list[ExaminedRow] = []
    pairs: list[tuple[str, str]] = []
    probabilities: list[float] = []
    came_true: list[bool] = []
    for row, (example, log_probabilities, path) in enumerate(zip(examples, scores, paths, strict=True)):
        true_tags, predicted_tags = example.tags or (), [tags[place] for place in path]
        expected, predicted = entity_spans(true_tags), entity_spans(predicted_tags)
        pairs += _confused(expected, predicted)
        of_words = np.exp(log_probabilities[np.arange(len(path)), path])
        probabilities += [float(of_words[span.start : span.stop].mean()) for span in predicted]
        came_true += [span in expected for span in predicted]
        has_any = bool(expected or predicted)
        rows.append(
            ExaminedRow(
                length=int(lengths[row]),
                loss=None if losses is None else float(losses[row]) / max(1, len(path)),
                score=overall(count_entities([true_tags], [predicted_tags], types).values()).f1 if has_any else 1.0,
                expected=_listed(expected, example, join),
                predicted=_listed(predicted, example, join),
                text=_text(example, 0, len(example.words), join),
                place=example.place,
            )
        )
    return Examination(
        rows,
        "entity F1 of a sentence",
        count_confusions(pairs, (*types, NO_ENTITY)),
        Outcomes("predicted entities", np.array(probabilities), np.array(came_true, dtype=bool)),
    )


def _confused(expected: Sequence[EntitySpan], predicted: Sequence[EntitySpan]) -> list[tuple[str, str]]:
    """(expected, predicted) types of all places where either has an entity."""
    by_place: dict[tuple[int, int], list[str]] = {}
    for side, spans in enumerate((expected, predicted)):
        for span in spans:
            by_place.setdefault((span.start, span.stop), [NO_ENTITY, NO_ENTITY])[side] = span.label
    return [(true, told) for true, told in by_place.values()]


def _sums_by_row(parts: Sequence[Part], found: FoundItems, num_rows: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Losses of all words and tokens of all sequences of each row; the loss of a sequence is the mean of its words."""
    places = [part.row for part in parts]
    lengths = np.bincount(places, found.lengths, num_rows)
    if found.losses is None:
        return None, lengths
    num_words = np.array([len(each) for each in found.decoded])
    return np.bincount(places, found.losses * num_words, num_rows), lengths


def _listed(spans: Sequence[EntitySpan], example: Example, join: Join) -> str:
    return "\n".join(f"{span.label}: {_text(example, span.start, span.stop, join)}" for span in spans)


def _text(example: Example, start: int, stop: int, join: Join) -> str:
    """Some words of a sentence as they stand in its text, where there is one."""
    if example.text is not None and example.units and stop > start:
        return example.text[example.units[start].start : example.units[stop - 1].stop]
    return join(example.words[start:stop])
