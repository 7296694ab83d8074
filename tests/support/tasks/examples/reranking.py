"""Queries for the opposite of a word, with two to four candidate documents, graded."""

import json
from pathlib import Path

PAIRS = (("big", "small"), ("hot", "cold"), ("new", "old"), ("dark", "light"), ("wet", "dry"))
OPPOSITES = {**dict(PAIRS), **{second: first for first, second in PAIRS}}
WORDS = list(OPPOSITES)
OPENINGS = ("what is", "which is", "what was", "which was", "who is", "who was")


def _row(word: str, number: int) -> dict:
    others = [other for other in WORDS if other not in (word, OPPOSITES[word])]
    documents = [f"it is {others[(number + 3 * index) % len(others)]}" for index in range(1 + number % 3)]
    documents.insert(number % 2, f"it is {OPPOSITES[word]}")
    labels = [0.0] * len(documents)
    labels[number % 2] = 2.0
    labels[-1] = labels[-1] or float(number % 4 == 2)
    return {"query": f"{OPENINGS[number]} not {word}?", "documents": documents, "labels": labels}


EXAMPLES = [_row(word, number) for word in WORDS for number in range(6)]
TEXTS = [row["query"] for row in EXAMPLES] + [document for row in EXAMPLES for document in row["documents"]]
OVERRIDES = [
    *("task=reranking", "data=candidates", "task.max_length=32", "task.loss=lambda"),
    *("data.document_column=documents", "data.label_column=labels"),
]
ROWS = [
    {"query": "what is not big?", "documents": ["it is hot", "it is small"]},
    {"query": "what is not wet?", "documents": ["it is dry", "it is light", "it is old", "it is cold"]},
    {"query": "what is not hot?", "documents": ["it is cold"]},
]
REFUSED = (
    "rows.jsonl, row 61 (line 61): 'labels' has 1 number, but the row has 2 documents",
    {"query": "what?", "documents": ["a", "b"], "labels": [1]},
)


def write(folder: Path) -> list[str]:
    """Writes the rows, and returns the overrides that name the files."""
    lines = [json.dumps(row) + "\n" for row in EXAMPLES]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return ["data.train=rows.jsonl", "data.validation_fraction=0.2"]


def write_refused(folder: Path) -> None:
    """Adds a row with another number of labels than documents."""
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(REFUSED[1]) + "\n")
