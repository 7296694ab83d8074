"""Questions about sentences that contain the answer."""

import json
from itertools import product
from pathlib import Path

NAMES, THINGS, PLACES = ("ada", "bela", "cem"), ("a boat", "the old mill", "tea"), ("dorf", "furt")
CONTEXTS = [f"{name} has {thing} in {place}." for name, thing, place in product(NAMES, THINGS, PLACES)]
QUESTIONS = [
    {"question": question, "context": context, "answers": [{"text": text, "answer_start": context.index(text)}]}
    for context, (name, thing, place) in zip(CONTEXTS, product(NAMES, THINGS, PLACES), strict=True)
    for question, text in (("who has it?", name), ("what is there?", thing), ("where is it?", place))
]
TEXTS = [*CONTEXTS, *(row["question"] for row in QUESTIONS)]
OVERRIDES = [
    *("task=question_answering", "data=questions", "task.max_length=32", "task.stride=4"),
    *("task.max_question_length=8", "task.n_best=3"),
]
ROWS = [
    {"question": "where is it?", "context": "ada has tea in furt."},
    {"question": "who has it?", "context": " ".join(CONTEXTS[:6])},
    {"question": "what is there?", "context": "a boat"},
]
REFUSED = (
    "rows.jsonl, row 55 (line 55)",
    {"question": "where is it?", "context": "in furt", "answers": [{"text": "furt", "answer_start": 0}]},
)


def write(folder: Path) -> list[str]:
    """Writes the questions, and returns the overrides that name the files."""
    lines = [json.dumps(row) + "\n" for row in QUESTIONS]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return ["data.train=rows.jsonl", "data.validation_fraction=0.2"]


def write_refused(folder: Path) -> None:
    """Adds a question whose answer is not at its offset."""
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(REFUSED[1]) + "\n")
