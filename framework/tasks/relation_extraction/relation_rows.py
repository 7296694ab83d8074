"""Reads JSON rows with two entities and their relation: tokens or a text, and the positions of both entities.

Sources: CLUE (Xu et al. 2020, arXiv:2004.05986), FewRel (Han et al. 2018, arXiv:1810.10147), TACRED (Zhang et al.
2017), and the files of OpenNRE.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from framework.data.reading.files import Reading
from framework.data.reading.json_rows import ALL_LISTS, JsonValue, check_surrogates, has_text, json_objects
from framework.data.reading.table_format import Row, TableFile
from framework.errors import DataError
from framework.tasks.relation_extraction.marked_text import MarkedText, mark_entities, read_marked_text

Span = tuple[int, int]

_TOKENS = ("tokens", "token")
_TEXTS = ("text", "sentence")
_RELATION = "relation"
# Keys of the first and the second entity.
_PAIRS = (("h", "t"), ("head", "tail"))
_TARGET = "target"
_TACRED = (("subj_start", "subj_end"), ("obj_start", "obj_end"))


def read_relation_json(table: TableFile, text_column: str, label_column: str | None, reading: Reading) -> Iterator[Row]:
    """Streams the rows of a JSON list, of JSONL, or of an object {relation: rows} (FewRel), as `text` and `label`.

    The label is the value of `label_column`, else of `relation`, else the key of the row's list. The text is that of
    `text_column` with its marks, or one of these forms with entity positions; the first entity becomes e1:
    - `tokens` (or `token`) and `h`, `t` (or `head`, `tail`), each [start, end], {"pos": [start, end]} or
      {"start": ..., "end": ...} with exclusive `end`, or FewRel's [name, id, [[token, ...], ...]], whose first mention
      counts.
    - `tokens` (or `token`) and TACRED's `subj_start`, `subj_end`, `obj_start`, `obj_end`: the first and the last
      token.
    - `text_column`, `text` or `sentence`, and `h`, `t` as above, in characters.
    - The same texts and CLUE's `target` with `span1_text`, `span1_index`, `span2_text` and `span2_index`.

    Args:
        table: The file.
        text_column: Key of the text.
        label_column: Key of the label; None: rows need no label and get none.
        reading: Handling of bad rows.

    Raises:
        DataError: The file is missing, empty or damaged, or a row is broken and `reading` does not skip it.
    """
    every_list = replace(table, parts=table.parts or ALL_LISTS)
    return json_objects(
        every_list, reading, lambda location, row: _row(location, row, table, text_column, label_column)
    )


def _row(location: str, row: JsonValue, table: TableFile, text_column: str, label_column: str | None) -> Row:
    values = {}
    if label_column is not None:
        label = row.value.get(label_column, row.value.get(_RELATION, row.key))
        if not has_text(label) or not str(label).strip():
            raise DataError(
                f"{location}: the label is {label!r:.80}. Each row needs a text in {label_column!r} or {_RELATION!r}, "
                "or a list under its relation. Fill it in, set label_column, or remove the row."
            )
        values["label"] = str(label).strip()
    text_key = next((key for key in (text_column, *_TEXTS) if key in row.value), None)
    text = _marked(location, row.value, text_column, text_key)
    check_surrogates(location, "text", text.text)
    kept = {text_key or text_column: text.marked} | {column: row.value[column] for column in table.as_is}
    return Row(row.number, row.line, {"text": text.marked} | values, kept=kept)


def _marked(location: str, row: Mapping[str, Any], text_column: str, text_key: str | None) -> MarkedText:
    tokens_key = next((key for key in _TOKENS if key in row), None)
    target = row.get(_TARGET)
    if tokens_key is None and isinstance(target, dict):
        row = {**row, **_clue_entities(target)}
    names = next((pair for pair in _PAIRS if pair[0] in row and pair[1] in row), None)
    if tokens_key is None and text_key is None:
        raise DataError(
            f"{location}: no {text_column!r} and no 'tokens' among {list(row)!r:.120}. A row needs one of them. Set "
            "text_column, or remove the row."
        )
    if tokens_key is None and names is None:
        text = row[str(text_key)]
        if not isinstance(text, str):
            raise DataError(f"{location}: {text_key!r} is {text!r:.80}. It must be text. Correct or remove the row.")
        return read_marked_text(location, text)
    if names is None and not any(key in row for pair in _TACRED for key in pair):
        raise DataError(
            f"{location}: tokens without the positions of two entities. A row must have them in h and t, head and "
            "tail, or subj_start, subj_end, obj_start and obj_end. Add them or remove the row."
        )
    if tokens_key is None:
        text = row[str(text_key)]
        if not isinstance(text, str) or names is None:
            raise DataError(f"{location}: {text_key!r} is {text!r:.80}. It must be text. Correct or remove the row.")
        first, second = (_span(location, name, row[name], len(text), "characters") for name in names)
        return mark_entities(location, text, first, second)
    tokens = row[tokens_key]
    if not isinstance(tokens, list) or not all(isinstance(token, str) and token for token in tokens):
        raise DataError(
            f"{location}: {tokens_key!r} is {tokens!r:.80}. It must be a list of texts, none empty. Correct or remove "
            "the row."
        )
    text, starts = join_tokens(tokens)
    spans = (
        [_span(location, name, row[name], len(tokens), "tokens") for name in names]
        if names is not None
        else [_tacred_span(location, row, keys, len(tokens)) for keys in _TACRED]
    )
    first, second = ((starts[start], starts[end - 1] + len(tokens[end - 1])) for start, end in spans)
    return mark_entities(location, text, first, second)


def _clue_entities(target: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entities of CLUE's `target` as `h` and `t`."""
    entities = {}
    for name, number in (("h", 1), ("t", 2)):
        start, text = target.get(f"span{number}_index"), target.get(f"span{number}_text")
        is_known = type(start) is int and isinstance(text, str)
        entities[name] = [start, start + len(text)] if is_known else target  # type: ignore[operator, arg-type]
    return entities


def _span(location: str, name: str, value: Any, length: int, unit: str) -> Span:
    """Parses the start and end of an entity from any of the forms of `read_relation_json`."""
    span = value
    if isinstance(value, dict):
        span = value["pos"] if "pos" in value else [value.get("start"), value.get("end")]
    elif isinstance(value, list) and len(value) == 3 and isinstance(value[2], list) and value[2]:
        mention = value[2][0]
        if isinstance(mention, list) and mention and all(type(index) is int for index in mention):
            span = [mention[0], mention[0] + len(mention)] if _is_consecutive(mention) else None
    return _checked(location, name, value, span, length, unit)


def _tacred_span(location: str, row: Mapping[str, Any], keys: Sequence[str], length: int) -> Span:
    start, last = (row.get(key) for key in keys)
    end = last + 1 if type(last) is int else last
    return _checked(location, " and ".join(keys), [start, last], [start, end], length, "tokens")


def _is_consecutive(indices: Sequence[int]) -> bool:
    return list(indices) == list(range(indices[0], indices[0] + len(indices)))


def _checked(location: str, name: str, value: Any, span: Any, length: int, unit: str) -> Span:
    if not isinstance(span, list) or [type(index) for index in span] != [int, int]:
        raise DataError(
            f"{location}: {name} is {value!r:.80}. It must be the start and end of the entity, [start, end]. Correct "
            "or remove the row."
        )
    start, end = span
    if not 0 <= start < end <= length:
        raise DataError(
            f"{location}: {name} is {value!r:.80}, empty or outside of the {length} {unit}. The end must be after the "
            "start and within them. Correct or remove the row."
        )
    return start, end


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[int]]:
    """Joins tokens with spaces, except between Chinese or Japanese characters.

    Returns:
        The text, and the offset of each token in it.
    """
    text, starts = "", []
    for token in tokens:
        if text and not (_is_unspaced(text[-1]) and _is_unspaced(token[0])):
            text += " "
        starts.append(len(text))
        text += token
    return text, starts


def _is_unspaced(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF" and "HANGUL" not in unicodedata.name(character, "")
