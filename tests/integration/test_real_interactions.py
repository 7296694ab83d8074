"""Tests on real ratings with real texts: splits and queries equal those of a plain loop over the file."""

import csv
import gzip
import json
from collections import defaultdict

from framework.tasks.recommendation.catalogue import build_catalogue
from framework.tasks.recommendation.data import InteractionData
from framework.tasks.recommendation.trial import build_trial
from tests.benchmarks.movielens_items import match_items
from tests.support.real_data import needs_real_data, real_data

DATA = real_data("recommendation")
pytestmark = needs_real_data
RATINGS = DATA / "ml_latest_small_ratings.csv.gz"


def test_movielens(tmp_path):
    with (DATA / "ml_latest_small_movies.csv").open(encoding="utf-8", newline="") as file:
        movies = list(csv.DictReader(file))
    items = match_items(movies, json.loads(gzip.decompress((DATA / "movie_summaries.json.gz").read_bytes())))
    assert len(items) == 491
    with (tmp_path / "items.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(items[0]))
        writer.writeheader()
        writer.writerows(items)
    columns = {"user_column": "userId", "item_column": "movieId", "time_column": "timestamp"}
    texts = {"rating_column": "rating", "min_rating": 4.0, "text_columns": ["title", "summary"]}
    data = InteractionData(
        str(RATINGS), str(tmp_path / "items.csv"), **columns, **texts, test_fraction=0.2, on_bad_row="skip"
    ).load()

    known = {row["movieId"] for row in items}
    with gzip.open(RATINGS, "rt", encoding="utf-8", newline="") as file:
        every = [
            (int(row["timestamp"]), row["userId"], row["movieId"], float(row["rating"])) for row in csv.DictReader(file)
        ]
    rows = sorted((row for row in every if row[2] in known), key=lambda row: row[0])
    assert data.facts.num_skipped == len(every) - len(rows)
    second = rows[len(rows) - len(rows) // 5][0]
    first = rows[sum(row[0] < second for row in rows) - len(rows) // 10][0]
    moments = [first <= row[0] < second for row in rows], [row[0] >= second for row in rows]
    assert [(data.splits == 1).sum(), (data.splits == 2).sum()] == [sum(each) for each in moments]

    by_user = defaultdict(list)
    for time, user, film, rating in rows:
        by_user[user].append((time, film, rating))
    expected = []
    for own in by_user.values():
        for moment in sorted({time for time, _, rating in own if time >= second and rating >= 4}):
            history = [film for time, film, rating in own if time < moment and rating >= 4]
            seen = [film for time, film, _ in own if time < moment]
            relevant = [film for time, film, rating in own if time >= moment and rating >= 4]
            if history:
                expected.append(tuple(tuple(sorted(films)) for films in (history, seen, relevant)))
    trial = build_trial(data, data.likes(), 2, build_catalogue(data))
    found = [
        tuple(
            tuple(sorted(data.items[index] for index in places)) for places in (each.history, each.seen, each.relevant)
        )
        for each in trial.questions
    ]
    assert sorted(found) == sorted(expected)
    assert len({each.user for each in trial.questions}) == 113
