"""Tagged sentences and the reader of CoNLL files, one word per line. The reader of JSON is `tagged_json`."""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from framework.data.examples.splits import same_text
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import Reading, decode_line, raw_lines
from framework.data.reading.table_format import Row, check_encoding
from framework.errors import ConfigError, DataError
from framework.tasks.token_classification.masked_words import mask_words

_DOCUMENT_START = b"-DOCSTART-"


@dataclass(frozen=True, slots=True)
class TaggedSentence:
    """A sentence (`framework.data.examples.splits.Record`).

    Attributes:
        location: File, sentence and line, for messages.
        words: Words of the sentence, at least one.
        tags: (words,) in BIO. Before the conversion in `TaggedData.load`: in the scheme of the file.
        lines: (words,) line number of each word, from 1. Empty if `location` is precise enough.
        text: Text of the words, if the file has spans of it instead of tags; None: the file has words and tags. The
            tags of spans are in BIO from the start.
    """

    location: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    lines: tuple[int, ...]
    text: str | None = None

    def masked(self, masking: TextMasking) -> "TaggedSentence":
        """Returns the sentence with masked words (`mask_words`). Its tags must be in BIO."""
        words, tags = mask_words(self.words, self.tags, masking, self.text)
        return replace(self, words=words, tags=tags, text=None)

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the normalized words."""
        return (same_text(" ".join(self.words)),)

    @property
    def answer(self) -> tuple[str, ...]:
        """Returns the tags."""
        return self.tags

    def location_of(self, index: int) -> str:
        """Returns the file and line of a word, for messages."""
        return f"{self.location}, line {self.lines[index]}" if self.lines else self.location


@dataclass(frozen=True)
class ConllFormat:
    """Layout of files with one word per line and blank lines between sentences.

    Attributes:
        word_column: Index of the column of the word, from 0. Negative indices count from the last column.
        tag_column: Index of the column of the tag. Negative indices count from the last column.
        separator: "white_space": runs of spaces and tabs. "tab": each tab, so that words may contain spaces.
        comment: Prefix of lines to ignore. None: the files have no comments (a word may be a hashtag).
        word_suffix: Regular expression of a suffix to remove from words, for example `[0-9]+` for Weibo NER, where each
            character has its index in the word as a suffix. At least one character of a word remains.
        encoding: Encoding of the files (`framework.data.reading.table_format.TableFormat`). CoNLL-2002 is latin-1.

    Raises:
        ConfigError: The encoding is unknown, `comment` is empty, or `word_suffix` is not a regular expression.
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
            raise ConfigError("comment is an empty text. Every line begins with it. Set it to null for no comments.")
        try:
            re.compile(self.word_suffix or "")
        except re.error as error:
            raise ConfigError(
                f"word_suffix is {self.word_suffix!r}, which is not a regular expression ({error}). Correct it."
            ) from error

    @property
    def codec(self) -> str:
        """Returns Python's name of the encoding."""
        return check_encoding("conll.encoding", self.encoding)

    def fields(self, line: str) -> list[str]:
        """Splits a line into its columns."""
        if self.separator == "tab":
            return line.rstrip("\r\n").split("\t")
        return re.split(r"[ \t]+", line.strip(" \t\r\n"))

    def word_and_tag(self, location: str, line: str) -> tuple[str, str]:
        """Returns the word and the tag of a line.

        Raises:
            DataError: The line has too few columns, or the word is empty.
        """
        fields = self.fields(line)
        if len({self.word_column % len(fields), self.tag_column % len(fields)}) < 2 or not all(
            -len(fields) <= column < len(fields) for column in (self.word_column, self.tag_column)
        ):
            raise DataError(
                f"{location}: the line has {len(fields)} columns. Column {self.word_column} must hold the word and "
                f"column {self.tag_column} its tag. Correct the line, or `word_column`, `tag_column` and `separator`."
            )
        return self._word(location, fields), fields[self.tag_column].strip()

    def word(self, location: str, line: str) -> str:
        """Returns the word of a line, which needs no tag.

        Raises:
            DataError: The line has too few columns, or the word is empty.
        """
        fields = self.fields(line)
        if not -len(fields) <= self.word_column < len(fields):
            raise DataError(
                f"{location}: the line has {len(fields)} columns. Column {self.word_column} must hold the word. "
                "Correct the line, or `word_column` and `separator`."
            )
        return self._word(location, fields)

    def _word(self, location: str, fields: Sequence[str]) -> str:
        word = fields[self.word_column]
        if self.word_suffix is not None and word:
            word = word[0] + re.sub(rf"(?:{self.word_suffix})\Z", "", word[1:])
        if not word:
            raise DataError(f"{location}: the word is empty. Each line needs a word. Add the word or remove the line.")
        return word


def read_conll(path: Path, layout: ConllFormat, reading: Reading) -> Iterator[TaggedSentence]:
    """Streams the sentences of a plain, gzip or zstd file. A `-DOCSTART-` line only ends a sentence.

    Raises:
        DataError: The file is missing, empty or damaged, or a line is broken and `reading` does not skip its sentence.
    """
    for number, lines in enumerate(_sentence_lines(path, layout, reading), start=1):
        sentence = f"{path}, sentence {number}"
        with reading.handling_bad_row():
            texts = [(f"{sentence}, line {line}", decode_line(path, line, raw, layout.codec)) for line, raw in lines]
            pairs = [layout.word_and_tag(location, text) for location, text in texts]
            words, tags = zip(*pairs, strict=True)
            numbers = tuple(line for line, _ in lines)
            yield TaggedSentence(f"{sentence} (line {numbers[0]})", words, tags, numbers)


def read_conll_words(path: Path, layout: ConllFormat, reading: Reading) -> Iterator[Row]:
    """Streams the sentences of a file as rows with `tokens`, a JSON list. The lines need no tags.

    Raises:
        DataError: The file is missing, empty or damaged, or a line is broken and `reading` does not skip its sentence.
    """
    for number, lines in enumerate(_sentence_lines(path, layout, reading), start=1):
        sentence = f"{path}, sentence {number}"
        with reading.handling_bad_row():
            words = [
                layout.word(f"{sentence}, line {line}", decode_line(path, line, raw, layout.codec))
                for line, raw in lines
            ]
            tokens = json.dumps(words, ensure_ascii=False)
            yield Row(number, lines[-1][0], {"tokens": tokens}, kept={"tokens": words})


def _sentence_lines(path: Path, layout: ConllFormat, reading: Reading) -> Iterator[list[tuple[int, bytes]]]:
    """Yields the numbered lines of each sentence."""
    comment = None if layout.comment is None else layout.comment.encode(layout.codec)
    sentence: list[tuple[int, bytes]] = []
    for number, raw in raw_lines(path, reading):
        line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        if not line.strip() or line.startswith(_DOCUMENT_START):
            if sentence:
                yield sentence
            sentence = []
        elif comment is None or not line.startswith(comment):
            sentence.append((number, raw))
    if sentence:
        yield sentence
