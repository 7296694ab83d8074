"""Writes the data card of a store, card.json and card.png, and reads the boundaries of its documents."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from framework.data.preparation.card_packing import Boundaries
from framework.data.preparation.card_picture import draw_card
from framework.data.store.writer import DATA_FILE

CARD_FILE, CARD_PICTURE_FILE = "card.json", "card.png"


def stored_boundaries(folder: Path) -> Iterator[Boundaries]:
    """Streams the boundaries of all committed record batches of a store, which may be incomplete."""
    with pa.memory_map(str(folder / DATA_FILE)) as file:
        for batch in pa.ipc.open_stream(file):
            lengths = batch.column("sentence_lengths")
            yield lengths.flatten().to_numpy(), np.diff(lengths.offsets.to_numpy())


def write_card(content: Mapping[str, Any], folder: Path, title: str) -> None:
    """Writes card.json and card.png.

    Args:
        content: Content from `CardBuilder.content`.
        folder: Folder of the store.
        title: Title of the picture.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    draw_card(content, folder / CARD_PICTURE_FILE, title)
