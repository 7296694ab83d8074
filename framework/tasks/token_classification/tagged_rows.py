"""Sentences whose words have tags, one word a line (CoNLL); those of JSON are in `tagged_json`."""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from framework.data.examples.splits import same_text
from framework.data.reading.files import Reading, decode_line, raw_lines
from framework.data.reading.table_format import Row, check_encoding
from framework.errors import ConfigError, DataError

_DOCUMENT_START = b"-DOCSTART-"


@dataclass(frozen=True, slots=True)
class TaggedSentence:
    """A sentence (`framework.data.examples.splits.Record`).

    Attributes:
        place: File, sentence and line, for messages.
        words: At least one.
        tags: (words,) in BIO; as read from a file as the file has them.
        lines: (words,) line number of each word from 1; empty if `place` is precise enough.
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

    def place_of(self, index: int) -> str:
        """Returns the file and line of a word, for messages."""
        return f"{self.place}, line {self.lines[index]}" if self.lines else self.place


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
        encoding: Encoding of the files (`framework.data.reading.table_format.TableFormat`); CoNLL-2002 is latin-1.
    """

    word_column: int = 0
    tag_column: int = -1
    separator: Literal["white_space", "tab"] = "white_space"
    comment: str | None = None
    word_suffix: str | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        check_encoding("conll.encoding", self.encoding)
        if self.comment == "":
            raise ConfigError("comment is an empty text, with which every line begins; give null for no comments.")
        try:
            re.compile(self.word_suffix or "")
        except re.error as error:
            raise ConfigError(f"word_suffix is {self.word_suffix!r}, no regular expression ({error}).") from error

    @property
    def codec(self) -> str:
        """Returns Python's name of the encoding."""
        return check_encoding("conll.encoding", self.encoding)

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
        return self._word(place, fields), fields[self.tag_column].strip()

    def word(self, place: str, line: str) -> str:
        """Returns the word of a line, which needs no tag.

        Raises:
            DataError: It has too few columns, or the word is empty.
        """
        fields = self.fields(line)
        if not -len(fields) <= self.word_column < len(fields):
            raise DataError(
                f"{place}: {len(fields)} columns, but the word is in column {self.word_column}. Each line must have "
                "it. Correct the line, or `word_column` and `separator`."
            )
        return self._word(place, fields)

    def _word(self, place: str, fields: Sequence[str]) -> str:
        word = fields[self.word_column]
        if self.word_suffix is not None and word:
            word = word[0] + re.sub(rf"(?:{self.word_suffix})\Z", "", word[1:])
        if not word:
            raise DataError(f"{place}: the word is empty; fill in or remove the line.")
        return word


def read_conll(path: Path, layout: ConllFormat, reading: Reading) -> Iterator[TaggedSentence]:
    """Streams the sentences of a file, plain, gzip or zstd; `-DOCSTART-` lines only end a sentence.

    Raises:
        DataError: The file is missing, empty or damaged, or a line is broken and `reading` does not skip its sentence.
    """
    for number, lines in enumerate(_stretches(path, layout, reading), start=1):
        where = f"{path}, sentence {number}"
        try:
            texts = [(f"{where}, line {line}", decode_line(path, line, raw, layout.codec)) for line, raw in lines]
            pairs = [layout.word_and_tag(place, text) for place, text in texts]
        except DataError as error:
            reading.bad_row(error)
        else:
            words, tags = zip(*pairs, strict=True)
            numbers = tuple(line for line, _ in lines)
            yield TaggedSentence(f"{where} (line {numbers[0]})", words, tags, numbers)


def read_conll_words(path: Path, layout: ConllFormat, reading: Reading) -> Iterator[Row]:
    """Streams the sentences of a file as rows of `tokens`, a JSON list; tags are not needed.

    Raises:
        DataError: The file is missing, empty or damaged, or a line is broken and `reading` does not skip its sentence.
    """
    for number, lines in enumerate(_stretches(path, layout, reading), start=1):
        where = f"{path}, sentence {number}"
        try:
            words = [
                layout.word(f"{where}, line {line}", decode_line(path, line, raw, layout.codec)) for line, raw in lines
            ]
        except DataError as error:
            reading.bad_row(error)
        else:
            tokens = json.dumps(words, ensure_ascii=False)
            yield Row(number, lines[-1][0], {"tokens": tokens}, kept={"tokens": words})


def _stretches(path: Path, layout: ConllFormat, reading: Reading) -> Iterator[list[tuple[int, bytes]]]:
    """The numbered lines of each sentence."""
    comment = None if layout.comment is None else layout.comment.encode(layout.codec)
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
