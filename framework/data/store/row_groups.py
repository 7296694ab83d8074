"""Row groups behind a streamed store: the record of them, and the encoder that rebuilds the ids of one."""

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any, Literal

import numpy as np

from framework.data.reading.documents import Cleaner
from framework.data.reading.files import Reading
from framework.data.reading.shards import ParquetShards, RowGroup
from framework.data.reading.sources import Source
from framework.data.store.stored_batch import StoredBatch
from framework.data.tokenization.document_encoder import DocumentEncoder
from framework.errors import DataError
from framework.files import parse_json

ROW_GROUPS_FILE = "row_groups.json"


def save_row_groups(
    folder: Path, sources: Iterable[Source], strip_html: bool, on_bad_row: Literal["error", "skip"]
) -> None:
    """Writes the row groups that `RowGroupEncoder` needs, so that no footer is read when a run starts.

    The file contains no storage options.

    Args:
        folder: Folder of the store.
        sources: Sources of the store; all must be `ParquetShards`.
        strip_html: See `Cleaner`.
        on_bad_row: See `Reading`.
    """
    described: list[dict[str, object]] = []
    for source in sources:
        assert isinstance(source, ParquetShards)
        where = dict(source.where) if source.where is not None else None
        groups = [astuple(group) for group in source.groups()]
        described.append({"text_column": source.text_column, "where": where, "groups": groups})
    content = {"strip_html": strip_html, "on_bad_row": on_bad_row, "sources": described}
    (folder / ROW_GROUPS_FILE).write_text(json.dumps(content), encoding="utf-8")


class RowGroupEncoder:
    """Reads the row group of a record batch and encodes those of its texts that are in the store.

    Args:
        folder: Folder of the store.
        stored: Function that returns the document boundaries of a record batch by its number.
        tokenizer_folder: Folder of the store's tokenizer.
        storage_options: Options for the file systems of the shards.

    Raises:
        DataError: The record of the row groups is missing or unreadable.
    """

    def __init__(
        self,
        folder: Path,
        stored: Callable[[int], StoredBatch],
        tokenizer_folder: Path,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            content = parse_json((folder / ROW_GROUPS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"the row groups of the token store {folder} cannot be read ({error}). A streamed store requires "
                f"{ROW_GROUPS_FILE}. Delete the store and run framework.prepare again."
            ) from error
        self._stored = stored
        self._groups: list[tuple[ParquetShards, RowGroup]] = []
        for described in content["sources"]:
            groups = [RowGroup(*group) for group in described["groups"]]
            shards = ParquetShards(
                sorted({group.shard for group in groups}),
                described["text_column"],
                described["where"],
                storage_options=storage_options,
            )
            self._groups += [(shards, group) for group in groups]
        self._strip_html: bool = content["strip_html"]
        self._on_bad_row: Literal["error", "skip"] = content["on_bad_row"]
        self._tokenizer_folder = tokenizer_folder
        self._of_thread = threading.local()

    def __call__(self, number: int) -> np.ndarray:
        """Returns the ids (tokens,) of a record batch.

        Raises:
            DataError: The shard cannot be reached or read, or it changed since the store was built.
        """
        stored = self._stored(number)
        assert stored.group is not None
        assert stored.rows is not None
        shards, group = self._groups[stored.group]
        texts = list(shards.read_group(group, Reading(self._on_bad_row)))
        # Rows beyond the last text are skipped here. The comparison of the lengths below then detects the change.
        selected = [texts[row] for row in stored.rows.tolist() if row < len(texts)]
        encoded = self._encoder()(Cleaner(self._strip_html, deduplicate=False).clean(selected).texts)
        if not np.array_equal(encoded.sentence_lengths, stored.sentence_lengths):
            raise DataError(
                f"{group}: the sentences differ from those of the token store. Shards must not change after the "
                "store is built. Run framework.prepare again with overwrite=true."
            )
        return encoded.input_ids

    def _encoder(self) -> DocumentEncoder:
        # An encoder caches words and is not thread-safe.
        if not hasattr(self._of_thread, "encoder"):
            self._of_thread.encoder = DocumentEncoder(self._tokenizer_folder)
        encoder: DocumentEncoder = self._of_thread.encoder
        return encoder
