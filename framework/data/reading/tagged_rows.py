"""Sentences whose words have tags: CoNLL columns, or JSONL with tokens and tags, or with a text and spans of it."""

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from framework.data.examples.splits import same_text
from framework.data.examples.text_units import TextUnit, Units, split_units
from framework.data.reading.files import Reading, decode_line, raw_lines
from framework.data.reading.json_rows import check_surrogates, json_object
from framework.errors import ConfigError, DataError

_DOCUMENT_START = b"-DOCSTART-"


@dataclass(frozen=True, slots=True)
class TaggedSentence:
    """A sentence (`framework.data.examples.splits.Record`).

    Attributes:
        place: File, sentence and line, for messages.
        words: At least one.
        tags: (words,) in BIO; as read from a file as the file has them.
        lines: (words,) line of each in the file, counted from 1.
        has_spans: Whether the file has spans of a text instead of tags; the tags are then in BIO from the start.
    """

    place: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    lines: tuple[int, ...]
    has_spans: bool = False

    @property
    def identity(self) -> tuple[str, ...]:
        """The words."""
        return (same_text(" ".join(self.words)),)

    @property
    def answer(self) -> tuple[str, ...]:
        """The tags."""
        return self.tags


@dataclass(frozen=True)
class ConllFormat:
    """How files with one word a line and blank lines between sentences are read.

    Attributes:
        word_column: Counted from 0; negative from the last.
        tag_column: Counted likewise.
        separator: "white_space": runs of spaces and tabs; "tab": each tab, so that words may hold spaces.
        comment: Lines that begin so are left out; None: there are no comments (a word may be a hashtag).
        word_suffix: A regular expression of what ends words and belongs not to them, for example the `[0-9]+` of Weibo
            NER, in which each character bears its place in its word; at least one character of a word stays.
    """

    word_column: int = 0
    tag_column: int = -1
    separator: Literal["white_space", "tab"] = "white_space"
    comment: str | None = None
    word_suffix: str | None = None

    def __post_init__(self) -> None:
        if self.comment == "":
            raise ConfigError("comment is an empty text, with which every line begins; give null for no comments.")
        try:
            re.compile(self.word_suffix or "")
        except re.error as error:
            raise ConfigError(f"word_suffix is {self.word_suffix!r}, no regular expression ({error}).") from error

    def fields(self, line: str) -> list[str]:
        """The columns of a line."""
        if self.separator == "tab":
            return line.rstrip("\r\n").split("\t")
        return re.split(r"[ \t]+", line.strip(" \t\r\n"))

    def word_and_tag(self, place: str, line: str) -> tuple[str, str]:
        """What a line says.

        Raises:
            DataError: It has too few columns.
        """
        fields = self.fields(line)
        if len({self.word_column % len(fields), self.tag_column % len(fields)}) < 2 or not all(
            -len(fields) <= column < len(fields) for column in (self.word_column, self.tag_column)
        ):
            raise DataError(
                f"{place}: {len(fields)} columns, but the word is in column {self.word_column} and its tag in column "
                f"{self.tag_column}; correct the line, or `word_column`, `tag_column` and `separator`."
            )
        word, tag = fields[self.word_column], fields[self.tag_column].strip()
        if self.word_suffix is not None and word:
            word = word[0] + re.sub(rf"(?:{self.word_suffix})\Z", "", word[1:])
        if not word:
            raise DataError(f"{place}: the word is empty; fill in or remove the line.")
        return word, tag


def read_conll(path: Path, layout: ConllFormat, reading: Reading) -> Iterator[TaggedSentence]:
    """Streams the sentences of a file, plain, gzip or zstd; `-DOCSTART-` lines only end a sentence.

    Raises:
        DataError: The file is missing, empty or damaged, or a line is broken and `reading` does not skip its sentence.
    """
    for number, lines in enumerate(_stretches(path, layout, reading), start=1):
        where = f"{path}, sentence {number}"
        try:
            pairs = [layout.word_and_tag(f"{where}, line {line}", decode_line(path, line, raw)) for line, raw in lines]
        except DataError as error:
            reading.bad_row(error)
        else:
            words, tags = zip(*pairs, strict=True)
            numbers = tuple(line for line, _ in lines)
            yield TaggedSentence(f"{where} (line {numbers[0]})", words, tags, numbers)


def _stretches(path: Path, layout: ConllFormat, reading: Reading) -> Iterator[list[tuple[int, bytes]]]:
    """The numbered lines of each sentence."""
    comment = None if layout.comment is None else layout.comment.encode()
    stretch: list[tuple[int, bytes]] = []
    for number, raw in raw_lines(path, reading):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        if not line.strip() or line.startswith(_DOCUMENT_START):
            if stretch:
                yield stretch
            stretch = []
        elif comment is None or not line.startswith(comment):
            stretch.append((number, raw))
    if stretch:
        yield stretch


def read_tagged_jsonl(path: Path, units: Units, reading: Reading) -> Iterator[TaggedSentence]:
    """Streams the rows of a file: `tokens` and `tags`, lists of one length, or `text` and `spans`.

    A span is an object with `start`, `stop` or `end` behind its last character, and `label`; where it has a `text`,
    that is compared. Places count code points.

    Raises:
        DataError: The file is missing, empty or damaged, or a row is broken and `reading` does not skip it.
    """
    number = 0
    for line, raw in raw_lines(path, reading):
        if not raw.strip():
            continue
        number += 1
        try:
            row = json_object(f"{path}, line {line}", decode_line(path, line, raw))
            place = f"{path}, row {number} (line {line})"
            words, tags = _spans_to_tags(place, row, units) if "text" in row else _tokens_and_tags(place, row)
            check_surrogates(place, "text", "".join(words))
        except DataError as error:
            reading.bad_row(error)
        else:
            yield TaggedSentence(place, words, tags, (line,) * len(words), has_spans="text" in row)


def _tokens_and_tags(place: str, row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    for key in ("tokens", "tags"):
        values = row.get(key)
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            raise DataError(
                f"{place}: {key!r} is {values!r:.80}, it must be a list of texts, none empty; a row needs `tokens` and "
                "`tags`, or `text` and `spans`."
            )
    words, tags = tuple(row["tokens"]), tuple(row["tags"])
    if not words or len(words) != len(tags):
        raise DataError(
            f"{place}: {len(words)} tokens and {len(tags)} tags, there must be one tag for each, and at least one; "
            "correct or remove the row."
        )
    return words, tags


def _spans_to_tags(place: str, row: Mapping[str, Any], units: Units) -> tuple[tuple[str, ...], tuple[str, ...]]:
    text, spans = row["text"], row.get("spans")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: 'text' is {text!r:.80}, it must be text that is not empty; fill in or remove it.")
    if not isinstance(spans, list):
        raise DataError(f"{place}: 'spans' is {spans!r:.80}, it must be a list; give an empty one for no entities.")
    parts = split_units(text, units)
    first = {part.start: index for index, part in enumerate(parts)}
    last = {part.stop: index for index, part in enumerate(parts)}
    tags = ["O"] * len(parts)
    for span in spans:
        start, stop, label = _checked_span(place, text, span)
        if start not in first or stop not in last:
            raise DataError(
                f"{place}: the span {span!r:.120} does not begin and end with {units.replace('_', ' ')} of the text, "
                f"{_around(parts, start, stop)}; correct it, or set `task.units` to characters."
            )
        covered = slice(first[start], last[stop] + 1)
        if any(tag != "O" for tag in tags[covered]):
            raise DataError(f"{place}: the span {span!r:.120} overlaps another one; leave one of them out.")
        tags[covered] = [f"B-{label}", *[f"I-{label}"] * (last[stop] - first[start])]
    return tuple(part.text for part in parts), tuple(tags)


def _checked_span(place: str, text: str, span: Any) -> tuple[int, int, str]:
    start, stop, label = (span.get(key) if isinstance(span, dict) else None for key in ("start", "end", "label"))
    if type(start) is not int or type(stop) is not int or not isinstance(label, str) or not label.strip():
        raise DataError(f"{place}: the span {span!r:.120} must have whole numbers `start` and `end`, and a `label`.")
    if not 0 <= start < stop <= len(text):
        raise DataError(
            f"{place}: the span {span!r:.120} is empty or outside of the text, which has {len(text)} characters; "
            "correct or remove it."
        )
    if span.get("text", text[start:stop]) != text[start:stop]:
        raise DataError(
            f"{place}: the span {span!r:.120} is {text[start:stop]!r:.80} in the text; places must count code points."
        )
    return start, stop, label.strip()


def _around(parts: list[TextUnit], start: int, stop: int) -> str:
    near = [repr(part.text) for part in parts if part.stop > start and part.start < stop]
    return f"which here are {', '.join(near)}"[:120] if near else "there is white space only"
