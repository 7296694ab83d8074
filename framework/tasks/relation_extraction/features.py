"""Sequences of relation extraction: `[CLS] the [E1] dog [/E1] sees the [E2] cat [/E2] [SEP]`.

The layout follows Baldini Soares et al. 2019 (arXiv:1906.03158, section 3.2), whose marks are new tokens. Departure:
the vocabulary is unchanged. The marks are its first four placeholders (`[unused0]` and the next ones). Without
placeholders they are punctuation, as in Zhou and Chen 2022 (arXiv:2102.01373, section 3.2): `the @ dog @ sees the # cat
#`.
"""

from collections.abc import Sequence

import numpy as np

from framework.batch import IGNORE_INDEX
from framework.data.facts import Cutting
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.reading.files import Reading
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.tasks.explanation import TextSpan, TokenSpans, located
from framework.tasks.relation_extraction.data import RelationExample

LOSS_TERM = "relation"
SHORTEST = 8
"""Tokens of the shortest sequence: [CLS] [E1] a [/E1] [E2] b [/E2] [SEP]."""

_NUM_MARKS = 4
_PUNCTUATION = ("@", "#")
_TEXTS_AT_ONCE = 1000
"""Texts per batch; an encoding with offsets takes some hundred bytes per token until it is converted to arrays."""

Spans = tuple[tuple[int, int], tuple[int, int]]
"""Start (inclusive) and end (exclusive) of e1 and of e2 in tokens."""


def mark_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the ids of the four marks: before e1, after e1, before e2, after e2.

    Raises:
        ConfigError: The vocabulary has neither four placeholders nor the two punctuation marks.
    """
    if len(tokenizer.placeholder_ids) >= _NUM_MARKS:
        return tuple(tokenizer.placeholder_ids[:_NUM_MARKS].tolist())
    encoded = tokenizer.encode_batch([f" {mark}" for mark in _PUNCTUATION])
    for mark, ids in zip(_PUNCTUATION, encoded, strict=True):
        if len(ids) != 1 or ids[0] == tokenizer.unk_id:
            raise ConfigError(
                f"{tokenizer.folder} has fewer than {_NUM_MARKS} placeholders ([unused0], ...) and no token {mark!r}. "
                "Entities are marked with one of the two. Choose a vocabulary that has either."
            )
    (first,), (second,) = encoded
    return int(first), int(first), int(second), int(second)


def relation_source(
    examples: Sequence[RelationExample], labels: Sequence[str], tokenizer: Tokenizer, max_length: int, reading: Reading
) -> FlatSource:
    """Builds one sequence for each row that fits; its record is the row.

    Targets: labels (sequences,), indices in the label set; entity_starts (sequences, 2), the positions of the marks
    before e1 and e2. Count: relation, one for each row with a label.

    Args:
        examples: Rows.
        labels: Names in the order of scores.
        tokenizer: Tokenizer of the model, which returns offsets.
        max_length: Most tokens of a sequence. A longer text is truncated to a part with both entities in its middle.
        reading: Handling of a row whose entities do not fit or have no token of their own.

    Raises:
        ConfigError: The vocabulary has no marks.
        DataError: No row is left, or a row does not fit and `reading` does not skip it.
    """
    marks, room = mark_ids(tokenizer), max_length - 2 - _NUM_MARKS
    pieces: list[np.ndarray] = []
    starts: list[tuple[int, int]] = []
    records: list[RelationExample] = []
    lengths: list[int] = []
    for begin in range(0, len(examples), _TEXTS_AT_ONCE):
        some = examples[begin : begin + _TEXTS_AT_ONCE]
        encoded = tokenizer.encode_with_offsets([example.text.text for example in some])
        for example, (ids, firsts, ends) in zip(some, encoded, strict=True):
            with reading.handling_bad_row():
                spans = entity_tokens(example, firsts, ends)
                marked, mark_positions = mark_entities(example.location, ids, spans, marks, room)
                pieces.append(np.concatenate([[tokenizer.cls_id], marked, [tokenizer.sep_id]]))
                starts.append((mark_positions[0] + 1, mark_positions[1] + 1))
                records.append(example)
                lengths.append(len(ids))
    if not records:
        raise DataError(f"all rows were skipped. At least one must remain. For example: {reading.skipped[0]}")
    label_indices = {label: index for index, label in enumerate(labels)}
    num_truncated = np.maximum(np.array(lengths) - room, 0)
    answers = np.array([label_indices.get(example.label or "", IGNORE_INDEX) for example in records], dtype=np.int64)
    return FlatSource(
        np.concatenate(pieces),
        np.array([len(piece) for piece in pieces], dtype=np.int64),
        {
            "labels": FlatTarget(answers, "sequences"),
            "entity_starts": FlatTarget(np.array(starts, dtype=np.int64), "sequences", is_position=True),
        },
        {LOSS_TERM: (answers != IGNORE_INDEX).astype(np.float64)},
        max_length,
        records=records,
        cutting=Cutting(
            max_length, len(records), int((num_truncated > 0).sum()), sum(lengths), int(num_truncated.sum())
        ),
    )


def entity_tokens(example: RelationExample, firsts: np.ndarray, ends: np.ndarray) -> Spans:
    """Returns the tokens that contain a character of each entity.

    Args:
        example: Row.
        firsts: (tokens,) offset of each token's first character in the text.
        ends: (tokens,) offset after each token's last character.

    Raises:
        DataError: An entity has no token, or the entities share a token.
    """
    spans = [_tokens_between(span, firsts, ends) for span in example.text.spans]
    for name, (start, stop) in zip(("e1", "e2"), spans, strict=True):
        if start >= stop:
            raise DataError(
                f"{example.location}: {name} has no token, because the tokenizer drops all of its characters. Each "
                "entity needs a token. Remove the row, or choose another tokenizer."
            )
    (start_1, stop_1), (start_2, stop_2) = spans
    if max(start_1, start_2) < min(stop_1, stop_2):
        raise DataError(
            f"{example.location}: {' and '.join(map(repr, example.text.entities))} share a token. Each entity needs "
            "its own tokens. Remove the row, or choose another tokenizer."
        )
    return spans[0], spans[1]


def _tokens_between(span: tuple[int, int], firsts: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    return int(np.searchsorted(ends, span[0], side="right")), int(np.searchsorted(firsts, span[1], side="left"))


def mark_entities(
    location: str, ids: np.ndarray, spans: Spans, marks: Sequence[int], room: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Inserts marks around two entities, and truncates the text to a part with both in its middle.

    Args:
        location: File and row of the text, for messages.
        ids: (tokens,) ids of the full text.
        spans: Tokens of e1 and e2.
        marks: Ids of the four marks.
        room: Most tokens to keep, not counting marks.

    Returns:
        Ids with marks, and the positions of the marks before e1 and before e2 among them.

    Raises:
        DataError: There are more than `room` tokens from the start of the first entity to the end of the last.
    """
    begin, end = min(span[0] for span in spans), max(span[1] for span in spans)
    if end - begin > room:
        raise DataError(
            f"{location}: from one entity to the end of the other there are {end - begin} tokens, but a sequence has "
            f"room for {room}. Both entities must fit. Raise task.max_length, or remove the row."
        )
    first = min(max(begin - (room - end + begin) // 2, 0), max(len(ids) - room, 0))
    window = ids[first : first + room]
    order = (0, 1) if spans[0] < spans[1] else (1, 0)
    edges = [edge - first for entity in order for edge in spans[entity]]
    around = [mark for entity in order for mark in marks[2 * entity : 2 * entity + 2]]
    starts = {entity: edges[2 * rank] + 2 * rank for rank, entity in enumerate(order)}
    return np.insert(window, edges, around), (starts[0], starts[1])


def locate_marked(example: RelationExample, tokenizer: Tokenizer, max_length: int) -> TokenSpans:
    """Locates the tokens of a sequence of `relation_source` in the text without its marks.

    Args:
        example: Row of the sequence.
        tokenizer: Tokenizer of the model.
        max_length: Most tokens of the sequence.
    """
    text = example.text.text
    ((ids, firsts, ends),) = tokenizer.encode_with_offsets([text])
    spans = entity_tokens(example, firsts, ends)
    # Indices of the text's tokens instead of their ids, with -1 for the marks.
    numbers = np.arange(len(ids))
    marked, _ = mark_entities(example.location, numbers, spans, [-1] * _NUM_MARKS, max_length - 2 - _NUM_MARKS)
    kept = marked[marked >= 0]
    cut = [TextSpan("text", 0, int(firsts[kept[0]]))] if kept[0] > 0 else []
    if kept[-1] < len(ids) - 1:
        cut.append(TextSpan("text", int(firsts[kept[-1] + 1]), len(text)))
    located_spans = located("text", 1 + np.flatnonzero(marked >= 0), firsts[kept], ends[kept])
    return TokenSpans({"text": text}, located_spans, range(len(marked) + 2), cut)
