"""Writes BEIR folders."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Judged = Mapping[str, Sequence[tuple[str, str, object]]]


def write_beir(
    folder: Path, documents: Sequence[Mapping[str, object]], queries: Mapping[str, str], judged: Judged
) -> Path:
    """Writes a folder.

    Args:
        folder: Folder to create.
        documents: Objects of corpus.jsonl.
        queries: Texts by id.
        judged: Rows (query, document, score) by name of the file in qrels.
    """
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": key, "text": text} for key, text in queries.items()]
    for name, objects in (("corpus", documents), ("queries", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects), encoding="utf-8")
    for name, judgments in judged.items():
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judgments)]
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
