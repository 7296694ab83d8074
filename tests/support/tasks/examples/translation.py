"""Numbers in the words of two invented languages; the second language reverses the order of the digits."""

from itertools import product
from pathlib import Path

WORDS = {"one": "uno", "two": "duo", "three": "tri", "four": "kvar"}
SOURCES = [" ".join(digits) for length in (1, 2, 3) for digits in product(WORDS, repeat=length)]
TARGETS = [" ".join(WORDS[digit] for digit in reversed(source.split())) for source in SOURCES]
TEXTS = [*SOURCES, *TARGETS]
OVERRIDES = [
    *("task=translation", "data=parallel_text", "task.max_source_length=16", "task.decoder.num_layers=1"),
    *("task.decoder.max_length=16", "task.search.num_beams=2", "task.search.max_length=8"),
]
ROWS = [{"text": "one"}, {"text": "four three two one"}, {"text": "two two"}]
REFUSED = ("sources.txt, line 85: the target is empty", "one two three four\n")


def write(folder: Path) -> list[str]:
    """Writes the two files, and returns the overrides that name them."""
    (folder / "sources.txt").write_text("\n".join(SOURCES) + "\n", encoding="utf-8")
    (folder / "targets.txt").write_text("\n".join(TARGETS) + "\n", encoding="utf-8")
    return ["data.train=sources.txt", "data.train_targets=targets.txt", "data.validation_fraction=0.2"]


def write_refused(folder: Path) -> None:
    """Adds an invalid pair, of which one text is empty."""
    for name, line in (("sources.txt", REFUSED[1]), ("targets.txt", "\n")):
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(line)
