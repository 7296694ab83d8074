"""Customers' questions with answers, some of which answer several questions, and wrong answers that look right."""

from pathlib import Path

TOPICS = ["card", "loan", "cash", "fees", "bank", "code", "mail", "rate"]
QUESTIONS = {
    "lost": ["where is my {}", "i lost my {}", "my {} is gone", "cannot find the {}"],
    "price": ["what does a {} cost", "how much is the {}", "is the {} dear", "price of one {}"],
}
ANSWERS = {"lost": "we send you a new {}", "price": "the {} is for free"}
ROWS_OF = [
    (question.format(topic), ANSWERS[kind].format(topic), ANSWERS[other].format(topic))
    for topic in TOPICS
    for kind, other in (("lost", "price"), ("price", "lost"))
    for question in QUESTIONS[kind]
]
TEXTS = [text for row in ROWS_OF for text in row]
OVERRIDES = [
    *("task=embedding", "data=text_pairs", "task.max_length=32", "task.matryoshka_sizes=[8]", "task.symmetric=true"),
    *("task.candidates=train", "data.negative_columns=[negative]"),
]
ROWS = [{"text": "where is my card"}, {"text": "price of one loan that i lost"}, {"text": "code"}]
REFUSED = ("rows.csv, row 65 (line 66): 'pair' is empty", "where is my money,,\n")


def write(folder: Path) -> list[str]:
    """Writes the rows. Every second row has no hard negative."""
    lines = [
        f"{question},{answer},{negative if number % 2 else ''}"
        for number, (question, answer, negative) in enumerate(ROWS_OF)
    ]
    (folder / "rows.csv").write_text("text,pair,negative\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return ["data.train=rows.csv", "data.validation_fraction=0.2"]


def write_refused(folder: Path) -> None:
    """Adds an invalid row."""
    with (folder / "rows.csv").open("a", encoding="utf-8") as file:
        file.write(REFUSED[1])
