"""Saves pictures without rendering them: ten pictures take more time than the tiny run that they show.

Everything up to `Figure.savefig` runs. Tests that use the fixture `rendered` (all of tests/tracking), and commands in
processes of their own, render.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)
_render = Figure.savefig


def save_blank(figure: Figure, path: Path, **_: Any) -> None:
    """Writes a PNG of one pixel."""
    Path(path).write_bytes(_PIXEL)


def use_blank_pictures() -> None:
    """Makes all figures of this process save one pixel."""
    Figure.savefig = save_blank  # type: ignore[method-assign,assignment]


def are_blank() -> bool:
    return Figure.savefig is save_blank


@contextmanager
def rendered_pictures() -> Iterator[None]:
    """Renders pictures in between, in this process and in the ranks that it starts."""
    before = Figure.savefig
    Figure.savefig = _render  # type: ignore[method-assign]
    try:
        yield
    finally:
        Figure.savefig = before  # type: ignore[method-assign]
