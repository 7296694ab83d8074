"""Questions for the opposite of a word, with two to four choices."""

import json
from pathlib import Path

PAIRS = (("big", "small"), ("hot", "cold"), ("new", "old"), ("dark", "light"), ("wet", "dry"))
OPPOSITES = {**dict(PAIRS), **{second: first for first, second in PAIRS}}
WORDS = list(OPPOSITES)


def _row(word: str, number: int) -> dict:
    others = [other for other in WORDS if other not in (word, OPPOSITES[word])]
    choices = [others[(number + 3 * index) % len(others)] for index in range(1 + number % 3)]
    choices.insert(number % 2, OPPOSITES[word])
    return {"question": f"what is not {word}?", "choices": choices, "label": number % 2}


EXAMPLES = [_row(word, number) for word in WORDS for number in range(6)]
TEXTS = [*(row["question"] for row in EXAMPLES), *WORDS]
OVERRIDES = ["task=multiple_choice", "data=choices", "task.max_length=32"]
ROWS = [
    {"question": "what is not big?", "choices": ["hot", "small"]},
    {"question": "what is not wet?", "choices": ["dry", "light", "old", "cold"]},
    {"question": "what is not hot?", "choices": ["cold", "big", "new"]},
]
REFUSED = ("rows.jsonl, row 61 (line 61): the label is '2'", {"question": "what?", "choices": ["a", "b"], "label": 2})


def write(folder: Path) -> list[str]:
    """Writes the rows, and returns the overrides that name the files."""
    lines = [json.dumps(row) + "\n" for row in EXAMPLES]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return ["data.train=rows.jsonl", "data.validation_fraction=0.2"]


def write_refused(folder: Path) -> None:
    """Adds a row whose label is not the index of a choice."""
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(REFUSED[1]) + "\n")
