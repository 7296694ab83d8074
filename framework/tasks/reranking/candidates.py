"""A query with its candidate documents, and the checks of their texts and numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from framework.data.examples.answers import parse_list
from framework.data.examples.splits import same_text
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.json_rows import has_text
from framework.errors import DataError, counted


@dataclass(frozen=True, slots=True)
class CandidateList:
    """A query with its candidates (`framework.data.examples.splits.Record`).

    Attributes:
        location: File, row and line, for messages; of several rows the first.
        query: Query as in the file.
        documents: Candidates, all different.
        relevance: Relevance of each candidate, 0 for irrelevant ones; None if it is to be predicted.
        teacher_scores: Score of a teacher for each candidate; None if rows have none.
        row: Index of the row to predict whose candidates include these; None: the list is complete.
    """

    location: str
    query: str
    documents: tuple[str, ...]
    relevance: tuple[float, ...] | None = None
    teacher_scores: tuple[float, ...] | None = None
    row: int | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns query and candidates, independent of the order of the candidates."""
        return same_text(self.query), *sorted(map(same_text, self.documents))

    @property
    def answer(self) -> tuple[float, ...] | None:
        """Returns the relevance of the candidates in the order of `identity`; None if it is unknown."""
        if self.relevance is None:
            return None
        order = sorted(range(len(self.documents)), key=lambda index: same_text(self.documents[index]))
        return tuple(self.relevance[index] for index in order)

    def masked(self, masking: TextMasking) -> "CandidateList":
        """Returns the list with masked texts.

        Raises:
            DataError: Two documents differ only in what is masked.
        """
        documents = check_documents(self.location, [masking.text(document) for document in self.documents])
        return replace(self, query=masking.text(self.query), documents=documents)


def candidates_of_rows(lists: Sequence[CandidateList]) -> list[list[tuple[int, int]]]:
    """Returns the candidates of each row as (index of the list, index in the list); a complete list is a row."""
    rows: dict[int, list[tuple[int, int]]] = {}
    for item, each in enumerate(lists):
        own = rows.setdefault(item if each.row is None else each.row, [])
        own += [(item, index) for index in range(len(each.documents))]
    return [*rows.values()]


def with_relevance(each: CandidateList) -> CandidateList:
    """Returns a complete list: without labels, the document with the highest teacher score is the relevant one.

    Raises:
        DataError: No document is relevant.
    """
    if each.relevance is None:
        scores = each.teacher_scores or ()
        best = scores.index(max(scores))
        return replace(each, relevance=tuple(float(index == best) for index in range(len(scores))))
    if max(each.relevance) <= 0:
        raise DataError(
            f"{each.location}: the query {shortened(each.query)} has no relevant document among its "
            f"{counted(len(each.documents), 'candidate')}. Each query needs one. Add it, or remove the query."
        )
    return each


def texts_of(location: str, name: str, cell: str) -> list[str]:
    """Returns the texts of a cell that holds a text or a JSON list of texts; an empty cell holds none.

    Raises:
        DataError: An item of the list is empty or no text.
    """
    items = items_of(cell)
    if items is None:
        return [cell] if cell.strip() else []
    for number, item in enumerate(items, start=1):
        if not has_text(item) or not str(item).strip():
            raise DataError(
                f"{location}: document {number} of {name!r} is {'empty' if item in ('', None) else repr(item)}. "
                "Documents must be texts that are not empty. Complete or remove the row."
            )
    return [str(item) for item in items]


def items_of(cell: str) -> list[Any] | None:
    """Returns the items of a JSON list, or None for a text. A text that begins with a bracket is not always a list."""
    return parse_list(cell) if cell.lstrip().startswith("[") else None


def check_documents(location: str, documents: Sequence[str]) -> tuple[str, ...]:
    """Returns the candidates of a query.

    Raises:
        DataError: A document is empty, or two are equal except for white space.
    """
    first: dict[str, int] = {}
    for number, document in enumerate(documents, start=1):
        other = first.setdefault(same_text(document), number)
        if not document.strip():
            raise DataError(
                f"{location}: document {number} is empty. Documents must be texts that are not empty. Complete or "
                "remove the row."
            )
        if other != number:
            raise DataError(
                f"{location}: documents {other} and {number} are equal: {shortened(document)}. The documents of a "
                "query must be different. Remove one."
            )
    return tuple(documents)


def numbers_of(location: str, name: str, cell: str, size: int) -> tuple[float, ...]:
    """Parses the numbers of the documents of a row.

    Raises:
        DataError: A value is no finite number, or their number is not `size`.
    """
    items = items_of(cell)
    try:
        numbers = tuple(float(item) for item in ([cell.strip()] if items is None else items))
        is_finite = all(map(math.isfinite, numbers))
    except (TypeError, ValueError):
        is_finite = False
    if not is_finite:
        raise DataError(
            f"{location}: {name!r} is {shortened(cell.strip())}. It must hold finite numbers. Correct or remove the "
            "row."
        )
    if len(numbers) != size:
        raise DataError(
            f"{location}: {name!r} has {counted(len(numbers), 'number')}, but the row has "
            f"{counted(size, 'document')}. Each document needs one. Correct or remove the row."
        )
    return numbers


def shortened(text: str) -> str:
    """Quotes a text for a message, at most its first 57 characters."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
