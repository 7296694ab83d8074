"""Films of four kinds, and people who mostly like one kind. One kind is new: few people saw it, and only recently."""

import random
from pathlib import Path

KINDS = {
    "war": ["tank", "army", "war", "general"],
    "love": ["kiss", "bride", "love", "heart"],
    "space": ["star", "ship", "moon", "robot"],
    "crime": ["cop", "gun", "bank", "thief"],
}
FILMS = [
    (f"{kind}{number}", f"a film of {first} and {second}", f"with a {third}")
    for kind, words in KINDS.items()
    for number, (first, second, third) in enumerate(
        zip(words, words[1:] + words[:1], words[2:] + words[:2], strict=True)
    )
]
TEXTS = [f"{title} {text}" for _, title, text in FILMS]
OVERRIDES = [
    *("task=recommendation", "data=interactions", "task.max_history=4", "task.max_item_tokens=24"),
    *("task.history_decay=0.8", "task.num_recommended=3", "data.rating_column=stars", "data.min_rating=4"),
    *("data.text_columns=[title,text]", "data.validation_fraction=0.2", "task.temperature=0.1"),
]
ROWS = [
    {"history": ["war0", "war2"]},
    {"history": []},
    {"history": ["a film of a moon and a robot", "space1", "love0"]},
    {"history": ["crime0", "crime1", "crime2", "crime3", "war1", "a film"]},
]
REFUSED = ("seen.csv, row 577 (line 578): the item 'war9' has no text in films.csv", "u0,war9,99999,5\n")


def write(folder: Path) -> list[str]:
    """Writes the catalogue and the films of 48 people: 12 each, a third of them of another kind and not liked."""
    (folder / "films.csv").write_text(
        "film,title,text\n" + "".join(f"{film},{title},{text}\n" for film, title, text in FILMS), encoding="utf-8"
    )
    draw = random.Random(0)
    rows = []
    for person in range(48):
        kind = list(KINDS)[person % 4]
        own = [film for film, _, _ in FILMS if film.startswith(kind)]
        others = draw.sample([film for film, _, _ in FILMS if not film.startswith(kind)], 8)
        stars = [5] * 4 + [4] * 2 + [2] * 6
        for film, given in zip(own + others, stars, strict=True):
            rows.append((draw.randrange(10_000), f"u{person}", film, given))
    lines = [f"{person},{film},{time},{stars}\n" for time, person, film, stars in rows]
    (folder / "seen.csv").write_text("user,film,when,stars\n" + "".join(lines), encoding="utf-8")
    return ["data.interactions=seen.csv", "data.items=films.csv", "data.item_column=film", "data.time_column=when"]


def write_refused(folder: Path) -> None:
    """Adds an invalid row."""
    with (folder / "seen.csv").open("a", encoding="utf-8") as file:
        file.write(REFUSED[1])
