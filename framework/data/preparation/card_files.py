"""The data card of a store, card.json and card.png, and what it is made from."""

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
    """Streams what was committed to a store that may not be complete yet."""
    with pa.memory_map(str(folder / DATA_FILE)) as file:
        for batch in pa.ipc.open_stream(file):
            lengths = batch.column("sentence_lengths")
            yield lengths.flatten().to_numpy(), np.diff(lengths.offsets.to_numpy())


def write_card(content: Mapping[str, Any], folder: Path, title: str) -> None:
    """Writes both files.

    Args:
        content: From `CardBuilder.content`.
        folder: Of the store.
        title: Of the picture.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    draw_card(content, folder / CARD_PICTURE_FILE, title)
