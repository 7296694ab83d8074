"""Sentences about beings in containers, with either of the two named first."""

import json
from itertools import product
from pathlib import Path

BEINGS, THINGS = ("cat", "small bird", "ada", "the dog"), ("box", "old car", "tree house")
PATTERNS = {
    "Inside(e1,e2)": "<e1>{being}</e1> sits in <e2>{thing}</e2>",
    "Inside(e2,e1)": "<e1>{thing}</e1> contains <e2>{being}</e2>",
    "Other": "<e1>{being}</e1> forgot <e2>{thing}</e2>",
}
EXAMPLES = [
    {"text": pattern.format(being=being, thing=thing), "label": label}
    for being, thing, (label, pattern) in product(BEINGS, THINGS, PATTERNS.items())
]
# A vocabulary without placeholders uses @ and # as marks.
TEXTS = [*(row["text"] for row in EXAMPLES), "@ # @ #"]
OVERRIDES = ["task=relation_extraction", "data=relations", "task.max_length=32"]
ROWS = [
    {"text": "<e1>ada</e1> sits in <e2>tree</e2>"},
    {"text": "<e2>box</e2> contains <e1>the dog</e1>"},
    {"text": f"{'cat ' * 40}<e1>cat</e1> forgot <e2>old car</e2>{' cat' * 40}"},
]
REFUSED = (
    "rows.jsonl, row 37 (line 37): <e2> occurs 0 times",
    {"text": "<e1>cat</e1> sits in box", "label": "Other"},
)


def write(folder: Path) -> list[str]:
    """Writes the rows, and returns the overrides that name the files."""
    lines = [json.dumps(row) + "\n" for row in EXAMPLES]
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    return ["data.train=rows.jsonl", "data.validation_fraction=0.2"]


def write_refused(folder: Path) -> None:
    """Adds an invalid row, which has only one entity."""
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(REFUSED[1]) + "\n")
