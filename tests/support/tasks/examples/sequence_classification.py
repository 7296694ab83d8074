"""Invented film reviews with ratings."""

from pathlib import Path

GOOD, BAD = ("good", "fine", "great"), ("bad", "poor", "dull")
TEXTS = [
    f"a {word} film of {year} {'that nobody will forget' if year % 3 else ''}".strip()
    for year in range(1990, 2000)
    for word in (*GOOD, *BAD)
]
OVERRIDES = ["task=sequence_classification", "data=table", "task.max_length=32"]
ROWS = [{"text": "a good film"}, {"text": "a dull film of 1991 that nobody will forget"}, {"text": "poor"}]
REFUSED = ("rows.csv, row 61 (line 62): 'text' is empty", ",good\n")


def write(folder: Path) -> list[str]:
    """Writes the rows, and returns the overrides that name the files."""
    lines = [f"{text},{'good' if text.split()[1] in GOOD else 'bad'}" for text in TEXTS]
    (folder / "rows.csv").write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return ["data.train=rows.csv", "data.validation_fraction=0.2"]


def write_refused(folder: Path) -> None:
    """Adds an invalid row."""
    with (folder / "rows.csv").open("a", encoding="utf-8") as file:
        file.write(REFUSED[1])
