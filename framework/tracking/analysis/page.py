"""Renders the sections of a report as one HTML page with report.html.jinja, which escapes every text."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
)


@dataclass(frozen=True)
class Thumbnail:
    """Small picture in a cell of a table.

    Attributes:
        jpeg: Content of a JPEG file in base64.
        name: Name of the picture, shown when the pointer rests on it.
    """

    jpeg: str
    name: str


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        header: Names of the columns.
        rows: Cells of each row: texts or thumbnails.
        title: Heading above the table.
        full_length: True: the table has its full length; False: it scrolls.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | Thumbnail]]
    title: str = ""
    full_length: bool = False

    @property
    def is_numeric(self) -> list[bool]:
        """Returns per column: all cells are empty, "nan", or begin with a digit, a point or a sign; never the first."""
        columns = list(zip(*self.rows, strict=True))[1:]
        return [False, *(all(map(_is_number, each)) for each in columns)]


def _is_number(cell: str | Thumbnail) -> bool:
    return isinstance(cell, str) and (cell[:1] in "-+.0123456789" or cell == "nan")


@dataclass(frozen=True)
class Picture:
    """A PNG file that the page embeds.

    Attributes:
        path: Path of the file.
        description: Alternative text for readers who cannot see the picture.
        caption: Text below the picture.
        kind: Class of the figure: "tall" is as high as two others, "wide" as wide as the page.
    """

    path: Path
    description: str
    caption: str = ""
    kind: str = ""

    @property
    def data(self) -> str:
        """Returns the content of the file in base64."""
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Piece:
    """A word of a text with its score, or text between words.

    Attributes:
        text: Characters.
        share: Score relative to the strongest word, in [-1, 1]; 0: no colour.
        score: Score, shown when the pointer rests on the word.
    """

    text: str
    share: float = 0.0
    score: str = ""


@dataclass(frozen=True)
class WordRow:
    """A word in a list.

    Attributes:
        word: Word.
        score: Mean score.
        count: Number of rows that contain it.
        share: Score relative to the strongest word of the list, in [-1, 1].
    """

    word: str
    score: str
    count: str
    share: float


@dataclass(frozen=True)
class WordList:
    """Words of a class, strongest first.

    Attributes:
        title: Name of the class.
        details: Text beside the name.
        rows: Words.
    """

    title: str
    details: str
    rows: Sequence[WordRow]


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading. Everything else is optional.

    Attributes:
        identity: Id of the element, for links.
        title: Heading.
        details: Line below the heading.
        warnings: Items of a list.
        word_lists: Lists of words side by side.
        pictures: Pictures side by side.
        tables: Tables below each other.
        facts: Tables of names and values, side by side. Names without a value are omitted.
        examples: Worst examples of a split, with the keys of its analysis and `numbers`, which are texts by column. The
            failed cases of an audit have no `loss`. `pieces` are the coloured text, and `first_pieces` its beginning if
            it is long; both may be empty or missing.
        parts: Sections with smaller headings at the end.
    """

    identity: str
    title: str
    details: str = ""
    warnings: Sequence[str] = ()
    word_lists: Sequence[WordList] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    facts: Sequence[Mapping[str, str]] = ()
    examples: Sequence[Mapping[str, Any]] = ()
    parts: Sequence["Section"] = ()

    @property
    def has_content(self) -> bool:
        """Returns True if the section has more than a heading."""
        return any(
            (
                *(self.details, self.warnings, self.word_lists, self.pictures, self.tables, self.facts, self.examples),
                self.parts,
            )
        )


def render(name: str, summary: Mapping[str, Any] | None, tiles: Mapping[str, str], sections: Iterable[Section]) -> str:
    """Returns the complete HTML file.

    Args:
        name: Name of the run.
        summary: Content of summary.json; None: the page does not state how the run ended.
        tiles: Values at the top of the page by their titles. Empty values are omitted.
        sections: Sections in their order. Those with only a heading are omitted.
    """
    filled = [section for section in sections if section.has_content]
    template = _TEMPLATES.get_template("report.html.jinja")
    return template.render(name=name, summary=summary, tiles=tiles, sections=filled)
