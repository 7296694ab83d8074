"""The few pieces of HTML that a report is made of; every text that comes from outside is escaped here."""

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
    """HTML that is finished, so that it is not escaped again."""

    __slots__ = ()


def text(value: str) -> Markup:
    """A text as HTML, whatever it holds."""
    return value if isinstance(value, Markup) else Markup(escape(value))


def element(name: str, *children: str, kind: str = "", identity: str = "") -> Markup:
    """An element; children that are no Markup are texts.

    Args:
        name: Of the element.
        children: What it holds.
        kind: Its class.
        identity: Its id, for links.
    """
    attributes = "".join(f' {key}="{escape(value)}"' for key, value in (("class", kind), ("id", identity)) if value)
    return Markup(f"<{name}{attributes}>{''.join(map(text, children))}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    """Parts below each other; empty ones are left out."""
    return Markup("\n".join(text(part) for part in parts if part))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "", whole: bool = False) -> Markup:
    """A table whose first column names the rows; cells of the others that begin with a digit or a sign are numbers.

    Args:
        header: Names of columns; none: no header.
        rows: Cells.
        kind: Class of the table.
        whole: It is shown in its whole length, else one scrolls in it.
    """
    numeric = [
        place > 0 and all(not row[place] or row[place][0] in "-+.0123456789" or row[place] == "nan" for row in rows)
        for place in range(len(rows[0]) if rows else 0)
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
    return scrolled(head if header else Markup(), lines, kind, whole)


def scrolled(head: Markup, lines: Sequence[Markup], kind: str = "", whole: bool = False) -> Markup:
    """A table of finished rows in a frame."""
    parts = [element("thead", head)] if head else []
    inside = element("table", *parts, element("tbody", joined(lines)), kind=kind)
    return element("div", inside, kind="scroll whole" if whole else "scroll")


def facts(rows: Mapping[str, str]) -> Markup:
    """A table of names and values; those without a value are left out."""
    return table((), [(name, value) for name, value in rows.items() if value], kind="facts", whole=True)


def picture(path: Path, description: str, caption: str = "", kind: str = "") -> Markup:
    """A PNG file, as data within the page; nothing where there is no such file.

    Args:
        path: The file.
        description: For who does not see it.
        caption: Below it.
        kind: Class of the figure: "tall" is as high as two others, "wide" as wide as the page.
    """
    if not path.is_file():
        return Markup()
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = Markup(f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">')
    return element("figure", image, *([element("figcaption", caption)] if caption else []), kind=kind)


def figures(pictures: Iterable[Markup]) -> Markup:
    """Pictures beside each other as the width allows; nothing where there are none."""
    shown = joined(pictures)
    return element("div", shown, kind="figures") if shown else shown


def page(title: str, body: Iterable[str]) -> str:
    """The whole file."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return _PAGE.format(title=escape(title), style=style, body=joined(body))
