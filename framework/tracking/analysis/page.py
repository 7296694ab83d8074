"""Builds the HTML elements of a report. Every text from outside is escaped here."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


class Markup(str):
    """Finished HTML, which is not escaped again."""

    __slots__ = ()


def text(value: str) -> Markup:
    """Returns a text as HTML; a text that is not Markup is escaped."""
    return value if isinstance(value, Markup) else Markup(escape(value))


def element(name: str, *children: str, kind: str = "", identity: str = "") -> Markup:
    """Builds an element. Children that are not Markup are escaped.

    Args:
        name: Name of the element.
        children: Content of the element.
        kind: Class of the element.
        identity: Id of the element, for links.
    """
    attributes = "".join(f' {key}="{escape(value)}"' for key, value in (("class", kind), ("id", identity)) if value)
    return Markup(f"<{name}{attributes}>{''.join(map(text, children))}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    """Joins parts with line breaks and omits empty ones."""
    return Markup("\n".join(text(part) for part in parts if part))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "", full_length: bool = False) -> Markup:
    """Builds a table whose first column names the rows.

    Any other column is a column of numbers if all its cells are empty, "nan", or begin with a digit, a point or a sign.


    Args:
        header: Names of the columns; empty: the table has no header.
        rows: Cells of each row.
        kind: Class of the table.
        full_length: True: the table has its full length; False: it scrolls.
    """
    numeric = [
        index > 0 and all(not row[index] or row[index][0] in "-+.0123456789" or row[index] == "nan" for row in rows)
        for index in range(len(rows[0]) if rows else 0)
    ]
    kinds = ["number" if is_number else "" for is_number in numeric]
    head = element("tr", *(element("th", cell, kind=of) for cell, of in zip(header, kinds, strict=False)))
    lines = [
        element(
            "tr",
            element("th", row[0]),
            *(element("td", cell, kind=of) for cell, of in zip(row[1:], kinds[1:], strict=True)),
        )
        for row in rows
    ]
    return framed_table(head if header else Markup(), lines, kind, full_length)


def framed_table(head: Markup, lines: Sequence[Markup], kind: str = "", full_length: bool = False) -> Markup:
    """Builds a table of finished rows in a frame, which scrolls unless the table has its full length."""
    parts = [element("thead", head)] if head else []
    inside = element("table", *parts, element("tbody", joined(lines)), kind=kind)
    return element("div", inside, kind="scroll whole" if full_length else "scroll")


def facts(rows: Mapping[str, str]) -> Markup:
    """Builds a table of names and values. Names without a value are omitted."""
    return table((), [(name, value) for name, value in rows.items() if value], kind="facts", full_length=True)


def picture(path: Path, description: str, caption: str = "", kind: str = "") -> Markup:
    """Embeds a PNG file into the page as data; empty if the file does not exist.

    Args:
        path: Path of the file.
        description: Alternative text for readers who cannot see the picture.
        caption: Text below the picture.
        kind: Class of the figure: "tall" is as high as two others, "wide" as wide as the page.
    """
    if not path.is_file():
        return Markup()
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = Markup(f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">')
    return element("figure", image, *([element("figcaption", caption)] if caption else []), kind=kind)


def figures(pictures: Iterable[Markup]) -> Markup:
    """Lays pictures out side by side as the width allows; empty if there are none."""
    content = joined(pictures)
    return element("div", content, kind="figures") if content else content


def page(title: str, body: Iterable[str]) -> str:
    """Returns the complete HTML file."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return _PAGE.format(title=escape(title), style=style, body=joined(body))
