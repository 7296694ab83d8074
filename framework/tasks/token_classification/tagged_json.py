"""Reader of tagged sentences in JSON: rows with tokens and tags, or with a text and its spans."""

from collections.abc import Iterator, Mapping
from typing import Any

from framework.data.reading.files import Reading
from framework.data.reading.json_rows import check_surrogates, json_objects
from framework.data.reading.table_format import TableFile
from framework.errors import DataError
from framework.tasks.token_classification.tagged_rows import TaggedSentence
from framework.tasks.token_classification.text_units import TextUnit, Units, split_units


def read_tagged_json(table: TableFile, units: Units, reading: Reading) -> Iterator[TaggedSentence]:
    """Streams the rows of a JSON list or of JSONL.

    A row has one of these forms. Offsets count code points.
    - `tokens` and `tags`: lists of equal length.
    - `text` and `spans`: objects with `start`, exclusive `end`, and `label`. An optional `text` in them must match.
    - `text` and `label` (or `entities`): a list of [start, end, label], the form of spaCy and doccano.
    - `text` and `label`: {type: {mention: [[start, last], ...]}} with inclusive `last`, the form of CLUENER (Xu et al.
      2020, arXiv:2001.04351).

    Raises:
        DataError: The file is missing, empty or damaged, or a row is broken and `reading` does not skip it.
    """
    return json_objects(table, reading, lambda location, row: _sentence(location, row.value, units))


def _sentence(location: str, row: Mapping[str, Any], units: Units) -> TaggedSentence:
    has_text = "text" in row
    words, tags = _spans_to_tags(location, row, units) if has_text else _tokens_and_tags(location, row)
    check_surrogates(location, "text", "".join(words))
    return TaggedSentence(location, words, tags, (), text=row["text"] if has_text else None)


def _tokens_and_tags(location: str, row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    for key in ("tokens", "tags"):
        values = row.get(key)
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            raise DataError(
                f"{location}: {key!r} is {values!r:.80}. It must be a list of texts, none empty. Give the row `tokens` "
                "and `tags`, or `text` and `spans`."
            )
    words, tags = tuple(row["tokens"]), tuple(row["tags"])
    if not words or len(words) != len(tags):
        raise DataError(
            f"{location}: the row has {len(words)} tokens and {len(tags)} tags. It needs one tag per token, and at "
            "least one token. Correct or remove the row."
        )
    return words, tags


def _spans_to_tags(location: str, row: Mapping[str, Any], units: Units) -> tuple[tuple[str, ...], tuple[str, ...]]:
    text = row["text"]
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"{location}: 'text' is {text!r:.80}. It must be a text that is not empty. Add the text or remove the row."
        )
    spans = _listed_spans(location, row)
    parts = split_units(text, units)
    first = {part.start: index for index, part in enumerate(parts)}
    last = {part.stop: index for index, part in enumerate(parts)}
    tags = ["O"] * len(parts)
    for span in spans:
        start, stop, label = _checked_span(location, text, span)
        if start not in first or stop not in last:
            raise DataError(
                f"{location}: the span {span!r:.120} {_covered_units(parts, start, stop)}. It must begin and end with "
                f"{units.replace('_', ' ')} of the text. Correct it, or set `task.units` to characters."
            )
        covered = slice(first[start], last[stop] + 1)
        if any(tag != "O" for tag in tags[covered]):
            raise DataError(
                f"{location}: the span {span!r:.120} overlaps another span. Spans must not overlap. Remove one of them."
            )
        tags[covered] = [f"B-{label}", *[f"I-{label}"] * (last[stop] - first[start])]
    return tuple(part.text for part in parts), tuple(tags)


def _listed_spans(location: str, row: Mapping[str, Any]) -> list[Any]:
    """Returns the spans of a row as objects, from any of its forms."""
    key = next((each for each in ("spans", "entities", "label") if each in row), None)
    spans = None if key is None else row[key]
    if key == "label" and isinstance(spans, dict):
        return _cluener_spans(location, spans)
    if not isinstance(spans, list):
        raise DataError(
            f"{location}: {key or 'spans'!r} is {spans!r:.80}. It must be a list; `label` may also be {{type: "
            "{mention: [[start, last]]}}. Give an empty list if there are no entities."
        )
    names = ("start", "end", "label")
    return [dict(zip(names, span, strict=True)) if _has_three(span) else span for span in spans]


def _has_three(span: Any) -> bool:
    return isinstance(span, list) and len(span) == 3


def _cluener_spans(location: str, types: Mapping[str, Any]) -> list[Any]:
    spans = []
    for label, mentions in types.items():
        if not isinstance(mentions, dict):
            raise DataError(
                f"{location}: the mentions of {label!r} are {mentions!r:.80}. Each type needs an object of "
                "{mention: [[start, last]]}. Correct or remove the row."
            )
        for mention, offsets in mentions.items():
            if not isinstance(offsets, list) or not all(map(_is_pair, offsets)):
                raise DataError(
                    f"{location}: the offsets of {mention!r} are {offsets!r:.80}. They must be a list of [start, "
                    "last], two whole numbers. Correct or remove the row."
                )
            spans += [{"start": start, "end": last + 1, "label": label, "text": mention} for start, last in offsets]
    return spans


def _is_pair(offsets: Any) -> bool:
    return isinstance(offsets, list) and [type(each) for each in offsets] == [int, int]


def _checked_span(location: str, text: str, span: Any) -> tuple[int, int, str]:
    start, stop, label = (span.get(key) if isinstance(span, dict) else None for key in ("start", "end", "label"))
    if type(start) is not int or type(stop) is not int or not isinstance(label, str) or not label.strip():
        raise DataError(
            f"{location}: the span {span!r:.120} is incomplete. It must have whole numbers `start` and `end`, and a "
            "`label`. Correct or remove it."
        )
    if not 0 <= start < stop <= len(text):
        raise DataError(
            f"{location}: the span {span!r:.120} is empty or out of range. The text has {len(text)} characters. "
            "Correct or remove it."
        )
    if span.get("text", text[start:stop]) != text[start:stop]:
        raise DataError(
            f"{location}: the span {span!r:.120} does not match {text[start:stop]!r:.80} in the text. Offsets must "
            "count code points. Correct the offsets."
        )
    return start, stop, label.strip()


def _covered_units(parts: list[TextUnit], start: int, stop: int) -> str:
    texts = [repr(part.text) for part in parts if part.stop > start and part.start < stop]
    return f"covers or cuts {', '.join(texts)}"[:120] if texts else "covers only white space"
