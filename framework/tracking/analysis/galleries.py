"""Tables with pictures of an analysis: their values for JSON, and the tables of the report."""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from framework.tracking.analysis.page import Table, Thumbnail

if TYPE_CHECKING:
    from framework.tasks.examination import Gallery

GALLERIES = "galleries"
"""Key of the tables in an analysis."""


def gallery_values(galleries: Sequence["Gallery"], num_rows: int) -> list[dict[str, Any]]:
    """Returns tables as values for JSON; a picture becomes its name and a small JPEG in base64.

    Args:
        galleries: Tables.
        num_rows: Most rows of each table; tables without rows are left out.
    """
    # Imported here, because a report that is redrawn reads no pictures.
    from framework.data.reading.images import PictureFile, thumbnail

    def cell(value: str | PictureFile) -> str | dict[str, str]:
        if isinstance(value, str):
            return value
        return {"name": value.name, "jpeg": base64.b64encode(thumbnail(value)).decode("ascii")}

    return [
        {
            "title": gallery.title,
            "header": list(gallery.header),
            "rows": [[cell(value) for value in row] for row in gallery.rows[:num_rows]],
        }
        for gallery in galleries
        if gallery.rows[:num_rows]
    ]


def gallery_tables(galleries: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Returns the tables of a report from the values of an analysis."""
    return [
        Table(
            gallery["header"],
            [
                [cell if isinstance(cell, str) else Thumbnail(cell["jpeg"], cell["name"]) for cell in row]
                for row in gallery["rows"]
            ],
            gallery["title"],
            full_length=True,
        )
        for gallery in galleries
    ]
