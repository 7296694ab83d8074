"""Sequences of relation extraction: `[CLS] the [E1] dog [/E1] sees the [E2] cat [/E2] [SEP]`.

After Baldini Soares et al. 2019 (arXiv:1906.03158, section 3.2), whose marks are new tokens. Departure: the vocabulary
stays as it is. The marks are four of its placeholders (`[unused0]` and the next ones), or where it has none
punctuation, as in Zhou and Chen 2022 (arXiv:2102.01373, section 3.2): `the @ dog @ sees the # cat #`.
"""

from collections.abc import Sequence

import numpy as np

from framework.batch import IGNORE_INDEX
from framework.data.facts import Cutting
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.reading.files import Reading
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.tasks.relation_extraction.data import RelationExample

LOSS_TERM = "relation"
SHORTEST = 8
"""[CLS] [E1] a [/E1] [E2] b [/E2] [SEP]"""

_NUM_MARKS = 4
_PUNCTUATION = ("@", "#")
_TEXTS_AT_ONCE = 1000
"""Encodings with offsets take some hundred bytes a token until they are arrays."""

Spans = tuple[tuple[int, int], tuple[int, int]]
"""(first token, behind the last token) of e1 and of e2."""


def mark_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the four marks: before e1, behind it, before e2, behind it.

    Raises:
        ConfigError: The vocabulary has neither four placeholders nor the two punctuation marks.
    """
    if len(tokenizer.placeholder_ids) >= _NUM_MARKS:
        return tuple(tokenizer.placeholder_ids[:_NUM_MARKS].tolist())
    encoded = tokenizer.encode_batch([f" {mark}" for mark in _PUNCTUATION])
    for mark, ids in zip(_PUNCTUATION, encoded, strict=True):
        if len(ids) != 1 or ids[0] == tokenizer.unk_id:
            raise ConfigError(
                f"{tokenizer.folder} has fewer than {_NUM_MARKS} placeholders ([unused0], ...) to mark entities with, "
                f"and no token {mark!r}; choose a vocabulary with either."
            )
    (first,), (second,) = encoded
    return int(first), int(first), int(second), int(second)


def relation_source(
    examples: Sequence[RelationExample],
    labels: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    reading: Reading,
) -> FlatSource:
    """One sequence for each row that fits; its record is the row.

    Targets: labels (sequences,), places in the label set; entity_starts (sequences, 2), the marks before e1 and e2.
    Count: relation, one for each row with a label.

    Args:
        examples: The rows.
        labels: Names in the order of scores.
        tokenizer: Gives ids, special tokens and offsets.
        max_length: Most tokens of a sequence, special tokens and marks included; of a longer text the middle is taken,
            with both entities.
        reading: What is done about a row whose entities do not fit or have no token of their own.

    Raises:
        ConfigError: The vocabulary has no marks.
        DataError: No row is left, or one does not fit and `reading` does not skip those.
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
            try:
                spans = entity_tokens(example, firsts, ends)
                marked, places = mark_entities(example.location, ids, spans, marks, room)
            except DataError as error:
                reading.bad_row(error)
                continue
            pieces.append(np.concatenate([[tokenizer.cls_id], marked, [tokenizer.sep_id]]))
            starts.append((places[0] + 1, places[1] + 1))
            records.append(example)
            lengths.append(len(ids))
    if not records:
        raise DataError(f"no row is left, for example {reading.skipped[0]}")
    place = {label: index for index, label in enumerate(labels)}
    lost = np.maximum(np.array(lengths) - room, 0)
    answers = np.array([place.get(example.label or "", IGNORE_INDEX) for example in records], dtype=np.int64)
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
        cutting=Cutting(max_length, len(records), int((lost > 0).sum()), sum(lengths), int(lost.sum())),
    )


def entity_tokens(example: RelationExample, firsts: np.ndarray, ends: np.ndarray) -> Spans:
    """The tokens that hold a character of each entity.

    Args:
        example: The row.
        firsts: (tokens,) first character of each token in the text.
        ends: (tokens,) behind its last character.

    Raises:
        DataError: An entity has no token, or one that is the other's too.
    """
    spans = [_tokens_between(span, firsts, ends) for span in example.text.spans]
    for name, (start, stop) in zip(("e1", "e2"), spans, strict=True):
        if start >= stop:
            raise DataError(
                f"{example.location}: {name} has no token, since the tokenizer drops all of its characters; remove the "
                "row, or choose another tokenizer."
            )
    (start_1, stop_1), (start_2, stop_2) = spans
    if max(start_1, start_2) < min(stop_1, stop_2):
        raise DataError(
            f"{example.location}: {' and '.join(map(repr, example.text.entities))} share a token; remove the row, or "
            "choose another tokenizer."
        )
    return spans[0], spans[1]


def _tokens_between(span: tuple[int, int], firsts: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    return int(np.searchsorted(ends, span[0], side="right")), int(np.searchsorted(firsts, span[1], side="left"))


def mark_entities(
    location: str, ids: np.ndarray, spans: Spans, marks: Sequence[int], room: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Puts marks around two entities, in the part of the text that has both in its middle.

    Args:
        location: Where the text stands, for messages.
        ids: (tokens,) of the whole text.
        spans: Tokens of e1 and e2.
        marks: Ids of the four marks.
        room: Most tokens to keep, marks aside.

    Returns:
        Ids with marks, and the places of the marks before e1 and before e2 among them.

    Raises:
        DataError: From the beginning of one entity to the end of the other there are more than `room` tokens.
    """
    begin, end = min(span[0] for span in spans), max(span[1] for span in spans)
    if end - begin > room:
        raise DataError(
            f"{location}: from one entity to the end of the other there are {end - begin} tokens, but max_length "
            f"leaves {room}; raise it, or remove the row."
        )
    first = min(max(begin - (room - end + begin) // 2, 0), max(len(ids) - room, 0))
    window = ids[first : first + room]
    order = (0, 1) if spans[0] < spans[1] else (1, 0)
    edges = [edge - first for entity in order for edge in spans[entity]]
    around = [mark for entity in order for mark in marks[2 * entity : 2 * entity + 2]]
    starts = {entity: edges[2 * rank] + 2 * rank for rank, entity in enumerate(order)}
    return np.insert(window, edges, around), (starts[0], starts[1])
