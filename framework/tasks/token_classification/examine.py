"""Error analysis of token classification: missed entities, spurious entities, and entities with a wrong type."""

from collections.abc import Callable, Sequence

import numpy as np

from framework.metrics.entity_f1 import EntitySpan, count_entities, entity_spans, overall
from framework.tasks.examination import Examination, ExaminedRow, ItemResults, Outcomes, count_confusions
from framework.tasks.token_classification.decode import join_parts, predict_tags
from framework.tasks.token_classification.features import Example, Part

NO_ENTITY = "(none)"

Join = Callable[[Sequence[str]], str]


def examine_entities(
    parts: Sequence[Part], results: ItemResults, tags: Sequence[str], types: Sequence[str], join: Join
) -> Examination:
    """Builds one row per sentence. Its score is its entity F1, or 1 if no entity is expected and none is predicted.

    Two entities are confused if their first and last words are equal. Otherwise the expected one is missed (predicted
    as NO_ENTITY) and the predicted one is spurious. The diagonal, by row and by column, is thus recall and precision
    of a type.

    Args:
        parts: Records of the split.
        results: Model results for the items of the split.
        tags: Tag set in the order of scores.
        types: Entity types.
        join: Function that joins words if the sentence has no text.
    """
    examples, scores = join_parts(parts, results.decoded)
    paths = predict_tags(scores, tags)
    losses, lengths = _sums_by_row(parts, results, len(examples))
    rows: list[ExaminedRow] = []
    pairs: list[tuple[str, str]] = []
    probabilities: list[float] = []
    is_correct: list[bool] = []
    for row, (example, log_probabilities, path) in enumerate(zip(examples, scores, paths, strict=True)):
        true_tags, predicted_tags = example.tags or (), [tags[index] for index in path]
        expected, predicted = entity_spans(true_tags), entity_spans(predicted_tags)
        pairs += _confused(expected, predicted)
        of_words = np.exp(log_probabilities[np.arange(len(path)), path])
        probabilities += [float(of_words[span.start : span.stop].mean()) for span in predicted]
        is_correct += [span in expected for span in predicted]
        has_any = bool(expected or predicted)
        rows.append(
            ExaminedRow(
                length=int(lengths[row]),
                loss=None if losses is None else float(losses[row]) / max(1, len(path)),
                score=overall(count_entities([true_tags], [predicted_tags], types).values()).f1 if has_any else 1.0,
                expected=_listed(expected, example, join),
                predicted=_listed(predicted, example, join),
                text=_text(example, 0, len(example.words), join),
                location=example.location,
            )
        )
    return Examination(
        rows,
        "entity F1 of a sentence",
        count_confusions(pairs, (*types, NO_ENTITY)),
        Outcomes("predicted entities", np.array(probabilities), np.array(is_correct, dtype=bool)),
    )


def _confused(expected: Sequence[EntitySpan], predicted: Sequence[EntitySpan]) -> list[tuple[str, str]]:
    """Returns the (expected, predicted) types of all word spans that are an entity in either list."""
    by_span: dict[tuple[int, int], list[str]] = {}
    for index, spans in enumerate((expected, predicted)):
        for span in spans:
            by_span.setdefault((span.start, span.stop), [NO_ENTITY, NO_ENTITY])[index] = span.label
    return [(true, guess) for true, guess in by_span.values()]


def _sums_by_row(parts: Sequence[Part], results: ItemResults, num_rows: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Sums the losses of words and the tokens of sequences per row. The loss of a sequence is a mean over its words."""
    row_of_part = [part.row for part in parts]
    lengths = np.bincount(row_of_part, results.lengths, num_rows)
    if results.losses is None:
        return None, lengths
    num_words = np.array([len(each) for each in results.decoded])
    return np.bincount(row_of_part, results.losses * num_words, num_rows), lengths


def _listed(spans: Sequence[EntitySpan], example: Example, join: Join) -> str:
    return "\n".join(f"{span.label}: {_text(example, span.start, span.stop, join)}" for span in spans)


def _text(example: Example, start: int, stop: int, join: Join) -> str:
    """Returns a range of words, as written in the text if the sentence has one."""
    if example.text is not None and example.units and stop > start:
        return example.text[example.units[start].start : example.units[stop - 1].stop]
    return join(example.words[start:stop])
