"""Texts with two marked entities: `The <e1>dog</e1> sees the <e2>cat</e2>.`"""

import re
from dataclasses import dataclass

from framework.errors import DataError

_TAGS = ("<e1>", "</e1>", "<e2>", "</e2>")
_ANY_TAG = re.compile("|".join(_TAGS))


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A text and the spans of its two entities.

    Attributes:
        marked: Text with its marks.
        text: Text without marks.
        spans: Start (inclusive) and end (exclusive) of e1 and of e2 in characters, without white space at the edges.
    """

    marked: str
    text: str
    spans: tuple[tuple[int, int], tuple[int, int]]

    @property
    def entities(self) -> tuple[str, str]:
        """Returns the texts of e1 and e2."""
        (start_1, stop_1), (start_2, stop_2) = self.spans
        return self.text[start_1:stop_1], self.text[start_2:stop_2]


def read_marked_text(location: str, marked: str) -> MarkedText:
    """Parses the marks of a text.

    Args:
        location: File and row of the text, for messages.
        marked: Text that contains each mark once; e2 may come before e1.

    Raises:
        DataError: A mark is missing or occurs twice, the two entities overlap, or one is empty.
    """
    tags = [match[0] for match in _ANY_TAG.finditer(marked)]
    for tag in _TAGS:
        if tags.count(tag) != 1:
            raise DataError(
                f"{location}: {tag} occurs {tags.count(tag)} times in the text. It must occur once. Mark one entity as "
                "<e1>...</e1> and the other as <e2>...</e2>, or remove the row."
            )
    if tags not in ([*_TAGS], [*_TAGS[2:], *_TAGS[:2]]):
        raise DataError(
            f"{location}: the order of the marks is {' '.join(tags)}. Each entity must end before the other begins. "
            "Correct or remove the row."
        )
    pieces = _ANY_TAG.split(marked)
    spans = {}
    for index, tag in ((1, tags[0]), (3, tags[2])):
        entity = pieces[index]
        if not entity.strip():
            raise DataError(f"{location}: {tag} is empty. Each entity needs a text. Fill it in, or remove the row.")
        start = sum(map(len, pieces[:index])) + len(entity) - len(entity.lstrip())
        spans[tag] = (start, start + len(entity.strip()))
    return MarkedText(marked, "".join(pieces), (spans["<e1>"], spans["<e2>"]))


def mark_entities(location: str, text: str, first: tuple[int, int], second: tuple[int, int]) -> MarkedText:
    """Inserts marks into a text.

    Args:
        location: File and row of the text, for messages.
        text: Text without marks.
        first: Start (inclusive) and end (exclusive) of e1 in characters.
        second: Start and end of e2.

    Raises:
        DataError: The entities overlap, one is empty, or the text already contains marks.
    """
    (start, stop), (other_start, other_stop) = sorted((first, second))
    if other_start < stop:
        raise DataError(
            f"{location}: the entities {text[start:stop]!r} and {text[other_start:other_stop]!r} overlap. Each must "
            "end before the other begins. Correct or remove the row."
        )
    former, latter = (_TAGS[:2], _TAGS[2:]) if first < second else (_TAGS[2:], _TAGS[:2])
    marked = (
        f"{text[:start]}{former[0]}{text[start:stop]}{former[1]}{text[stop:other_start]}"
        f"{latter[0]}{text[other_start:other_stop]}{latter[1]}{text[other_stop:]}"
    )
    return read_marked_text(location, marked)
