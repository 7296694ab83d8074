"""Tagged sentences about invented people in invented towns."""

from itertools import product
from pathlib import Path

PEOPLE, PLACES, VERBS = ("ada", "bela rot", "cem"), ("dorf", "eck am see", "furt"), ("lives", "works", "sang")


def _tagged(words: str, kind: str) -> list[tuple[str, str]]:
    return [(word, f"{'I' if index else 'B'}-{kind}") for index, word in enumerate(words.split())]


SENTENCES = [
    [*_tagged(person, "person"), (verb, "O"), ("in", "O"), *_tagged(place, "place")]
    for person, verb, place in product(PEOPLE, VERBS, PLACES)
]
TEXTS = [" ".join(word for word, _ in sentence) for sentence in SENTENCES]
OVERRIDES = ["task=token_classification", "data=tagged", "task.max_length=32", "task.stride=16"]
ROWS = [{"text": "ada lives in eck am see"}, {"text": "in"}, {"text": "cem sang in furt"}]
REFUSED = ("rows.conll, sentence 28", "ada\tX-person\n\n")


def write(folder: Path) -> list[str]:
    """Writes the sentences, and returns the overrides that name the files."""
    blocks = ["".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in SENTENCES]
    (folder / "rows.conll").write_text("\n".join(blocks) + "\n", encoding="utf-8")
    return ["data.train=rows.conll", "data.validation_fraction=0.2"]


def write_refused(folder: Path) -> None:
    """Adds an invalid sentence, whose tag belongs to no scheme."""
    with (folder / "rows.conll").open("a", encoding="utf-8") as file:
        file.write(REFUSED[1])
