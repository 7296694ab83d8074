"""Interactions: splits in time, likes, ties and repeats; errors of rows and settings."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError
from framework.tasks.recommendation.data import SPLITS, InteractionData, Interactions

ITEMS = "item,title,text\n1,One,first\n2,Two,\n3,,third\n4,Four,\n"
# Ten interactions; a's second one with item 1 and b's last one are repeats.
ROWS = [
    ("a", 1, 10, 5),
    ("b", 2, 10, 4),
    ("a", 2, 20, 1),
    ("b", 1, 20, 5),
    ("a", 3, 30, 4),
    ("b", 3, 40, 4),
    ("a", 1, 45, 1),
    ("c", 1, 40, 5),
    ("c", 4, 50, 4),
    ("b", 2, 60, 5),
    ("b", 4, 60, 4),
    ("a", 4, 60, 2),
]


def write(folder: Path, rows=ROWS, items: str = ITEMS) -> dict[str, str]:
    lines = "".join(",".join(map(str, row)) + "\n" for row in rows)
    (folder / "seen.csv.gz").write_bytes(gzip.compress(("user,item,time,rating\n" + lines).encode()))
    (folder / "items.csv").write_text(items)
    return {"interactions": str(folder / "seen.csv.gz"), "items": str(folder / "items.csv")}


def as_tuples(interactions: Interactions) -> list[tuple]:
    """Returns user, item, time, liked and split of each."""
    columns = (
        interactions.users,
        interactions.item_indices,
        interactions.times,
        interactions.is_liked,
        interactions.splits,
    )
    return [
        ("abc"[user], interactions.items[index], int(time), bool(liked), SPLITS[split])
        for user, index, time, liked, split in zip(*columns, strict=True)
    ]


def test_splits_are_cut_by_time(tmp_path):
    files = write(tmp_path)
    rated = {"text_columns": ["title", "text"], "rating_column": "rating", "min_rating": 4.0}
    actual = InteractionData(**files, **rated, validation_fraction=0.3, test_fraction=0.25).load()
    # Of ten, the last two (a share of 0.25 is two and a half) are the test, the three before them validation.
    assert as_tuples(actual) == [
        ("a", "1", 10, True, "train"),
        ("b", "2", 10, True, "train"),
        ("a", "2", 20, False, "train"),
        ("b", "1", 20, True, "train"),
        ("a", "3", 30, True, "train"),
        ("b", "3", 40, True, "validation"),
        ("c", "1", 40, True, "validation"),
        ("c", "4", 50, True, "validation"),
        ("b", "4", 60, True, "test"),
        ("a", "4", 60, False, "test"),
    ]
    assert actual.texts == ("One. first", "Two", "third", "Four")
    assert actual.names == SPLITS
    assert (actual.facts.read, actual.facts.num_skipped, actual.facts.left_out) == (12, 0, {"repeated": 2})
    by_moment = InteractionData(**files, **rated, validation_from=31, test_from="1970-01-01T00:00:55").load()
    assert (by_moment.splits == actual.splits).all()
    without = InteractionData(**files, **rated, validation_fraction=0.0, test_fraction=0.2).load()
    assert without.names == ("train", "test")
    assert without.splits.tolist() == [0] * 8 + [2] * 2


def test_equal_times_never_fall_into_two_splits(tmp_path):
    """A share that ends within one time includes all interactions of that time."""
    files = write(tmp_path, items="item,text\n1,a\n2,b\n3,c\n4,d\n")
    # Of ten one is the last of two at 60; two before that begin with the second of two at 40.
    actual = InteractionData(**files, validation_fraction=0.2, test_fraction=0.1).load()
    assert [int(time) for time in actual.times[actual.splits == 2]] == [60, 60]
    assert [int(time) for time in actual.times[actual.splits == 1]] == [40, 40, 50]
    assert actual.is_liked.all()


def test_likes_count_the_strictly_earlier_ones(tmp_path):
    rows = [("a", 1, 5, 5), ("b", 3, 5, 5), ("a", 2, 5, 5), ("a", 3, 7, 5), ("b", 1, 6, 5), ("a", 4, 7, 5)]
    files = write(tmp_path, rows, "item,text\n1,a\n2,b\n3,c\n4,d\n")
    likes = InteractionData(**files, validation_fraction=0.0, test_fraction=0.0).load().likes()
    assert likes.users.tolist() == [0, 0, 0, 0, 1, 1]
    assert likes.item_indices.tolist() == [0, 1, 2, 3, 2, 0]
    assert likes.starts.tolist() == [0, 0, 0, 0, 4, 4]
    assert likes.num_earlier.tolist() == [0, 0, 2, 2, 0, 1]


def test_order_of_rows_only_decides_ties(tmp_path):
    (tmp_path / "other").mkdir()
    text = "item,text\n1,a\n2,b\n3,c\n4,d\n"
    rows = [(user, item, 10 * index, 5) for index, (user, item, _, _) in enumerate(ROWS)]
    one = InteractionData(**write(tmp_path, rows, text)).load()
    other = InteractionData(**write(tmp_path / "other", rows[::-1], text)).load()
    assert (one.item_indices == other.item_indices).all()
    assert (one.times == other.times).all()
    assert (one.splits == other.splits).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("", 1, 10, 5), "'user' is empty"),
        (("a", 9, 10, 5), "the item '9' has no text in"),
        (("a", 4, "noon", 5), "'time' is 'noon'. It must be a number of seconds, or a date"),
        (("a", 4, "inf", 5), "'time' is 'inf'. It must be a finite number of seconds"),
        (("a", 4, 10, "good"), "'rating' is 'good'. It must be a number"),
    ],
)
def test_bad_interactions_are_named_or_counted(tmp_path, row, message):
    files = write(tmp_path, [*ROWS, row])
    settings = {"text_columns": ["title", "text"], "rating_column": "rating"}
    with pytest.raises(DataError) as caught:
        InteractionData(**files, **settings).load()
    assert str(caught.value).startswith(f"{files['interactions']}, row 13 (line 14): {message}")
    actual = InteractionData(**files, **settings, on_bad_row="skip").load()
    assert (actual.facts.num_skipped, len(actual.users)) == (1, 10)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",x,y", "'item' is empty. Each item needs an id"),
        ("5,,", "item '5' has no text in title, text"),
        ("1,x,y", "item '1' occurs twice. Each item must have one row"),
    ],
)
def test_bad_items_are_named_or_counted(tmp_path, row, message):
    files = write(tmp_path, items=f"{ITEMS}{row}\n")
    with pytest.raises(DataError) as caught:
        InteractionData(**files, text_columns=["title", "text"]).load()
    assert str(caught.value).startswith(f"{files['items']}, row 5 (line 6): {message}")
    actual = InteractionData(**files, text_columns=["title", "text"], on_bad_row="skip").load()
    assert (actual.facts.notes["skipped items"], actual.texts[0]) == ("1", "One. first")


def test_dates(tmp_path):
    rows = [("a", 1, "2020-01-01", 5), ("a", 2, "2020-01-01T01:00:00+01:00", 5), ("a", 3, "2020-01-02T00:00:01Z", 5)]
    files = write(tmp_path, rows)
    actual = InteractionData(**files, text_columns=["title", "text"], validation_from="2020-01-02", test_fraction=0.0)
    with pytest.raises(DataError, match=r"train has 2 interactions, 2 of them likes, but no like of a user with"):
        actual.load()
    rows.append(("a", 4, "2019-12-31T23:59:59Z", 5))
    data = InteractionData(
        **write(tmp_path, rows), text_columns=["title", "text"], validation_from="2020-01-02", test_fraction=0.0
    ).load()
    assert np.diff(data.times).tolist() == [1.0, 0.0, 86401.0]
    assert data.splits.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_fraction": 1.0}, r"validation_fraction is 1\.0"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing for training"),
        ({"min_rating": 4.0}, r"min_rating is 4\.0, but rating_column is null"),
        ({"text_columns": []}, r"text_columns is \[\]"),
        ({"validation_from": 5, "test_from": "1970-01-01"}, "validation_from=5 is not before test_from=1970-01-01"),
        ({"test_from": "later"}, "test_from is 'later'. It must be a number of seconds, or a date"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        InteractionData("x", "y", **settings)


def test_a_split_without_a_known_user_is_named(tmp_path):
    files = write(tmp_path, items="item,text\n1,a\n2,b\n3,c\n4,d\n")
    with pytest.raises(DataError, match="test has 0 interactions, 0 of them likes"):
        InteractionData(**files, test_from=61).load()
    with pytest.raises(ConfigError, match=r"validation_from=70 is not before 1970-01-01T00:01:00\+00:00"):
        InteractionData(**files, validation_from=70).load()
    with pytest.raises(DataError, match="no column 'film'"):
        InteractionData(**files, item_column="film").load()


def test_each_file_has_its_own_format(tmp_path):
    (tmp_path / "ratings.dat").write_text("".join(f"{'::'.join(map(str, row))}\n" for row in ROWS))
    films = "1::One (1995)::Drama|War\n2::Été, l'::Drama\n3::Three\xb9::War\n4::Four::Comedy\n"
    (tmp_path / "movies.dat").write_bytes(films.encode("latin-1"))
    own = {
        "format": TableFormat(delimiter="::", columns=["user", "item", "time", "rating"]),
        "items_format": TableFormat(delimiter="::", columns=["item", "title", "genres"], encoding="latin-1"),
        "text_columns": ["title", "genres"],
    }
    files = {"interactions": str(tmp_path / "ratings.dat"), "items": str(tmp_path / "movies.dat")}
    actual = InteractionData(**files, **own).load()
    assert actual.texts[:3] == ("One (1995). Drama|War", "Été, l'. Drama", "Three¹. War")
    assert as_tuples(actual) == as_tuples(InteractionData(**write(tmp_path), text_columns=["title", "text"]).load())
    with pytest.raises(DataError, match=r"movies\.dat, line 2: byte 0xc9 at position 4 is not UTF-8"):
        InteractionData(
            **files, **own | {"items_format": TableFormat(delimiter="::", columns=["item", "title", "genres"])}
        ).load()
    with pytest.raises(DataError, match=r"movies\.dat, row 1 \(line 1\): 3 fields, format\.columns has 4"):
        InteractionData(**files, **own | {"items_format": None, "text_columns": ["rating"]}).load()


@pytest.mark.parametrize("cell", ["1_5", "2026_01_31", "1_000"])
def test_an_underscore_makes_no_number(tmp_path, cell):
    with pytest.raises(
        DataError, match=rf"row 1 \(line 2\): 'time' is '{cell}'\. It must be a number of seconds, or a date"
    ):
        InteractionData(**write(tmp_path, [("a", 1, cell, 5), *ROWS]), text_columns=["title", "text"]).load()
    with pytest.raises(DataError, match=rf"row 1 \(line 2\): 'rating' is '{cell}'\. It must be a number"):
        InteractionData(
            **write(tmp_path, [("a", 1, 5, cell), *ROWS]), rating_column="rating", text_columns=["title", "text"]
        ).load()
