"""Recommendation against loops over the raw rows: segments, loss, ranking and baselines; nothing uses the future."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.exports.huggingface import export_huggingface
from framework.tasks.recommendation.catalogue import CATALOGUE_FILE, Catalogue, read_catalogue
from framework.tasks.recommendation.data import InteractionData
from framework.tasks.recommendation.task import RecommendationTask
from tests.support.exports.module_files import embed_by_the_files
from tests.support.exports.random_models import both_forms, random_model
from tests.support.exports.small_exports import CONFIGS, make_tokenizer

HISTORY, DECAY, TEMPERATURE, PRIOR = 3, 0.7, 0.5, 0.4
NUM_ITEMS, VALIDATION, TEST = 15, 60, 80
SPLIT_NAMES = ("train", "validation", "test")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_folder(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 0))


def draw_rows(seed: int = 0) -> list[tuple[int, int, int, int]]:
    """Draws user, item, time, rating: no pair twice, many equal times; the first 70 of each seed are equal."""
    past, future = np.random.default_rng(7), np.random.default_rng(seed)
    pairs = [divmod(int(pair), NUM_ITEMS) for pair in past.permutation(8 * NUM_ITEMS)]
    rows = []
    for number, (user, item) in enumerate(pairs[:105]):
        is_past = number < 70
        draw = past if is_past else future
        time = int(draw.integers(0, VALIDATION) if is_past else draw.integers(VALIDATION, 100))
        # Times increase in steps of 5, so that some are equal.
        rows.append((user, item, time // 5 * 5, int(draw.integers(1, 6))))
    return rows


def write(folder: Path, rows) -> InteractionData:
    folder.mkdir(exist_ok=True)
    (folder / "items.csv").write_text(
        "item,text\n" + "".join(f"i{item},{'ab'[item % 2] * (item + 1)}\n" for item in range(NUM_ITEMS))
    )
    lines = "".join(f"u{user},i{item},{time},{rating}\n" for user, item, time, rating in rows)
    (folder / "seen.csv").write_text("user,item,time,rating\n" + lines)
    files = {"interactions": str(folder / "seen.csv"), "items": str(folder / "items.csv")}
    return InteractionData(**files, rating_column="rating", min_rating=3.0, validation_from=VALIDATION, test_from=TEST)


def build(folder: Path, tokenizer: Tokenizer, rows, **settings):
    given = {"max_history": HISTORY, "history_decay": DECAY, "temperature": TEMPERATURE, "popularity_prior": PRIOR}
    task = RecommendationTask(**given | settings, max_item_tokens=6)
    return task, task.build_sources(write(folder, rows), tokenizer, seed=0)


def likes_of(rows, user: int, before: float) -> list[tuple[int, int]]:
    """Returns time and item of a user's strictly earlier likes, in the order of time, then of the file."""
    ordered = sorted(rows, key=lambda row: row[2])
    return [(time, item) for who, item, time, rating in ordered if who == user and rating >= 3 and time < before]


def whole(source):
    indices = np.arange(len(source))
    return source.build(StepSequences(np.zeros_like(indices), indices, indices), 0)


def test_each_like_with_a_history_occurs_once_with_strictly_earlier_likes(tmp_path, tokenizer):
    rows = draw_rows()
    _, sources = build(tmp_path, tokenizer, rows)
    users = list(dict.fromkeys(user for user, *_ in rows))
    for name, first, end in (("train", 0, VALIDATION), ("validation", VALIDATION, TEST), ("test", TEST, 100)):
        batch = whole(sources[name])
        target = {key: value.tolist() for key, value in batch.targets.items()}
        actual = []
        members = (batch.sequence_ids % batch.group_size).tolist()
        for index, earlier in enumerate(target["earlier"]):
            if earlier == 0:
                continue
            start = index - members[index]
            user, item = users[target["users"][index] // 3], target["items"][index]
            (time,) = [row[2] for row in rows if row[:2] == (user, item)]
            known = [each for _, each in likes_of(rows, user, time)]
            assert target["items"][start : start + earlier][-HISTORY:] == known[-HISTORY:]
            actual.append((user, item))
        expected = [
            (user, item)
            for user, item, time, rating in rows
            if first <= time < end and rating >= 3 and likes_of(rows, user, time)
        ]
        assert sorted(actual) == sorted(expected)
        assert batch.counts == {"recommendation": len(expected)}
        catalogue = [index for index, user in enumerate(target["users"]) if user == -1]
        assert [target["items"][index] for index in catalogue] == ([] if name == "train" else list(range(NUM_ITEMS)))
        assert sources[name].max_sequence_length == 6


def test_sequences_are_the_texts_of_the_items(tmp_path, tokenizer):
    _, sources = build(tmp_path, tokenizer, draw_rows())
    batch = whole(sources["validation"])
    for ids, item in zip(batch.input_ids.split(batch.lengths), batch.targets["items"].tolist(), strict=True):
        (words,) = tokenizer.encode_batch(["ab"[item % 2] * (item + 1)])
        assert ids.tolist() == [tokenizer.cls_id, *words[:4], tokenizer.sep_id]


@pytest.mark.parametrize("corrects", [True, False])
@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_the_loss_equals_a_loop(tmp_path, tokenizer, name, corrects):
    rows = draw_rows()
    task, sources = build(tmp_path, tokenizer, rows, corrects_sampling=corrects)
    batch = whole(sources[name])
    generator = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(len(batch.lengths), 5, generator=generator), dim=1).requires_grad_()
    ours = task.loss_sums({"embeddings": vectors}, batch)["recommendation"]

    users = list(dict.fromkeys(user for user, *_ in rows))
    end = {"train": VALIDATION, "validation": TEST, "test": 100}[name]
    counts = [
        1 + sum(item == each and time < VALIDATION and stars >= 3 for _, each, time, stars in rows)
        for item in range(NUM_ITEMS)
    ]
    shares = [count / sum(counts) for count in counts]
    target = {key: value.tolist() for key, value in batch.targets.items()}
    members = (batch.sequence_ids % batch.group_size).tolist()
    candidates = [index for index, user in enumerate(target["users"]) if user != -1]
    expected = torch.zeros(())
    for index in candidates:
        if target["earlier"][index] == 0:
            continue
        start = index - members[index]
        user = users[target["users"][index] // 3]
        history = vectors[start : start + target["earlier"][index]][-HISTORY:]
        asking = sum(DECAY**age * vector for age, vector in enumerate(history.flip(0)))
        asking = asking / asking.norm()
        known = {item for _, item in likes_of(rows, user, end)}
        scores = []
        for other in candidates:
            if other == index or target["items"][other] not in known:
                share = math.log(shares[target["items"][other]])
                score = asking @ vectors[other] / TEMPERATURE + PRIOR * share - (share if corrects else 0)
                scores.insert(0 if other == index else len(scores), score)
        expected = expected - torch.stack(scores).log_softmax(0)[0]
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, vectors)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_a_step_with_only_the_catalogue_has_no_loss(tmp_path, tokenizer):
    task, sources = build(tmp_path, tokenizer, draw_rows())
    indices = np.arange(len(sources["test"]) - 4, len(sources["test"]))
    batch = sources["test"].build(StepSequences(np.zeros_like(indices), indices, indices), 0)
    vectors = torch.ones(4, 5, requires_grad=True)
    loss = task.loss_sums({"embeddings": vectors}, batch)["recommendation"]
    loss.backward()
    assert (loss.item(), batch.counts) == (0.0, {"recommendation": 0.0})


def slow_metrics(rows, score, first: int, end: int) -> dict[str, tuple[float, float]]:
    """Computes mean and standard error over users of recall and nDCG, with sets and sorting."""
    by_user: dict[int, dict[str, list[float]]] = {}
    for user in range(8):
        own = [row for row in rows if row[0] == user]
        for time in sorted({row[2] for row in own if first <= row[2] < end and row[3] >= 3}):
            history = [item for _, item in likes_of(rows, user, time)]
            if not history:
                continue
            seen = {row[1] for row in own if row[2] < time}
            relevant = {row[1] for row in own if time <= row[2] < end and row[3] >= 3}
            scores = score(history)
            ranked = sorted(set(range(NUM_ITEMS)) - seen, key=lambda item: (-scores[item], item))
            values = by_user.setdefault(user, {})
            for k in (5, 10, 20):
                hits = [rank for rank, item in enumerate(ranked[:k], start=1) if item in relevant]
                best = sum(1 / math.log2(1 + rank) for rank in range(1, min(k, len(relevant)) + 1))
                values.setdefault(f"recall_at_{k}", []).append(len(hits) / len(relevant))
                values.setdefault(f"ndcg_at_{k}", []).append(sum(1 / math.log2(1 + rank) for rank in hits) / best)
    means = {name: [sum(v[name]) / len(v[name]) for v in by_user.values()] for name in next(iter(by_user.values()))}
    return {
        name: (sum(values) / len(values), float(np.std(values, ddof=1)) / math.sqrt(len(values)))
        for name, values in means.items()
    }


@pytest.mark.parametrize(("name", "first", "end"), [("validation", VALIDATION, TEST), ("test", TEST, 100)])
def test_metrics_equal_a_slow_reference(tmp_path, tokenizer, name, first, end):
    rows = draw_rows()
    task, sources = build(tmp_path, tokenizer, rows)
    draw = np.random.default_rng(3)
    vectors = draw.normal(size=(NUM_ITEMS, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    source = sources[name]
    # Results for segments are ignored.
    decoded = [*draw.normal(size=(len(source) - NUM_ITEMS, 5)), *vectors]
    actual = task.score(source, decoded)

    train = [row for row in rows if row[2] < VALIDATION]
    likes = [sum(item == row[1] and row[3] >= 3 for row in train) for item in range(NUM_ITEMS)]
    mean = sum(row[3] for row in train) / len(train)
    ratings = [[row[3] for row in train if row[1] == item] for item in range(NUM_ITEMS)]
    means = [(sum(own) + 5 * mean) / (len(own) + 5) for own in ratings]

    def by_vectors(history: list[int]) -> list[float]:
        last = [vectors[item].astype(float) for item in history[-HISTORY:]]
        asking = sum(DECAY**age * vector for age, vector in enumerate(reversed(last)))
        asking = asking / math.sqrt(float(asking @ asking))
        total = sum(likes) + NUM_ITEMS
        return [
            float(asking @ vectors[item]) / TEMPERATURE + PRIOR * math.log((likes[item] + 1) / total)
            for item in range(NUM_ITEMS)
        ]

    references = {
        "": slow_metrics(rows, by_vectors, first, end),
        "popularity_": slow_metrics(rows, lambda _: likes, first, end),
        "item_mean_": slow_metrics(rows, lambda _: means, first, end),
    }
    for before, expected in references.items():
        for metric, (value, error) in expected.items():
            if before == "" or metric.endswith("_at_10"):
                assert actual[before + metric] == pytest.approx(value, abs=1e-9)
            if metric.endswith("_at_10"):
                assert actual[f"{before}{metric}_error"] == pytest.approx(error, abs=1e-9)
    over = references[""]["ndcg_at_10"][0] - references["popularity_"]["ndcg_at_10"][0]
    assert actual["ndcg_at_10_over_popularity"] == pytest.approx(over, abs=1e-9)
    of_split = [row for row in rows if first <= row[2] < end and row[3] >= 3]
    cold = [row for row in of_split if not likes_of(rows, row[0], row[2])]
    assert actual["cold_start_share"] == len(cold) / len(of_split)
    assert actual["num_users"] == len({row[0] for row in of_split if row not in cold})
    table = {row["ranking"]: row for row in task.class_table({}, source, decoded)}
    assert len(table) == 18
    recall, error = references["item_mean_"]["recall_at_20"]
    assert table["item mean, recall at 20"]["value"] == pytest.approx(recall)
    assert table["item mean, recall at 20"]["error"] == pytest.approx(error)
    more = table["popularity, ndcg at 10"]["model has more"]
    assert more == pytest.approx(actual["ndcg_at_10_over_popularity"])


def test_the_future_does_not_change_the_past(tmp_path, tokenizer):
    """With another future after the first cut, the training, its popularity and means are bit-identical."""
    rows, others = draw_rows(), draw_rows(seed=1)
    assert rows[:70] == others[:70]
    task, sources = build(tmp_path / "one", tokenizer, rows)
    other_task, other_sources = build(tmp_path / "other", tokenizer, others)
    assert sources["train"].fingerprint == other_sources["train"].fingerprint
    assert sources["validation"].fingerprint != other_sources["validation"].fingerprint
    for name, scores in sources["validation"].trial.baselines.items():
        assert (scores == other_sources["test"].trial.baselines[name]).all()
    assert task.extra_files() == other_task.extra_files()
    batch = whole(sources["train"])
    vectors = normalize(torch.randn(len(batch.lengths), 5, generator=torch.Generator().manual_seed(0)), dim=1)
    losses = [each.loss_sums({"embeddings": vectors}, batch)["recommendation"].item() for each in (task, other_task)]
    assert losses[0] == losses[1]
    # The same holds for the later cut: another test set changes no question of the validation.
    late = [row if row[2] < TEST else (*row[:3], 6 - row[3]) for row in rows]
    _, late_sources = build(tmp_path / "late", tokenizer, late)
    assert sources["validation"].fingerprint == late_sources["validation"].fingerprint
    ours, theirs = (each["validation"].trial.questions for each in (sources, late_sources))
    assert [question.relevant.tolist() for question in ours] == [question.relevant.tolist() for question in theirs]


def rows_to_predict(*histories: object) -> list[Row]:
    return [Row(number, None, {"history": json.dumps(each)}) for number, each in enumerate(histories, start=1)]


def restored(folder: Path, **settings) -> RecommendationTask:
    catalogue = Catalogue(("x", "y", "7", "z"), ("a", "b b", "c", "d"), np.array([1, 5, 0, 0]))
    (folder / CATALOGUE_FILE).write_text(catalogue.to_jsonl())
    task = RecommendationTask(temperature=0.5, max_history=2, num_recommended=2, **settings)
    task.restore_files(folder)
    return task


def test_predictions_by_hand(tmp_path, tokenizer):
    task = restored(tmp_path, popularity_prior=0.0)
    source = task.build_source(rows_to_predict(["x"], [], ["b  b", "new", 7], ["x", "y", "7"]), tokenizer)
    # Four items of the catalogue, and one that is only in the histories.
    assert len(source) == 5
    vectors = np.eye(5, dtype=np.float32)
    vectors[3, 0] = 0.8
    vectors[3, 3] = 0.6
    predictions = task.assemble(source, list(vectors))
    assert [row["history"] for row in predictions] == [["x"], [], ["b  b", "new", "7"], ["x", "y", "7"]]
    assert (predictions[0]["items"], predictions[0]["scores"]) == (["z", "y"], pytest.approx([1.6, 0.0]))
    # Without a history, the most liked, by the logarithm of (likes + 1) / 10.
    assert (predictions[1]["items"], predictions[1]["scores"]) == (
        ["y", "x"],
        pytest.approx([math.log(0.6), math.log(0.2)]),
    )
    # The text of y is y, and is not recommended again; the last two likes are "new" and 7.
    assert (predictions[2]["items"], predictions[2]["scores"]) == (["x", "z"], pytest.approx([0.0, 0.0]))
    # Only one item remains.
    assert predictions[3]["items"] == ["z"]
    with_prior = restored(tmp_path, popularity_prior=1.0)
    source = with_prior.build_source(rows_to_predict(["x"]), tokenizer)
    (row,) = with_prior.assemble(source, list(vectors[:4]))
    assert (row["items"], row["scores"]) == (["y", "z"], pytest.approx([math.log(0.6), 1.6 + math.log(0.1)]))


@pytest.mark.parametrize("cell", ['"x"', "[", "x", '["x", ""]', "[[1]]", "{}"])
def test_invalid_histories_are_named(tmp_path, tokenizer, cell):
    with pytest.raises(DataError, match=r"row 1 \(line 2\): 'history' is .*\. It must be a list of ids or texts"):
        restored(tmp_path).check_row(Row(1, 2, {"history": cell}), tokenizer)


def test_the_catalogue_keeps_its_items(tmp_path):
    catalogue = Catalogue(("x", "é"), ('"a"\nb', "c"), np.array([3, 0]))
    (tmp_path / CATALOGUE_FILE).write_text(catalogue.to_jsonl(), encoding="utf-8")
    again = read_catalogue(tmp_path / CATALOGUE_FILE)
    assert (again.items, again.texts, again.num_likes.tolist()) == (("x", "é"), ('"a"\nb', "c"), [3, 0])
    for row, message in (
        ({"item": "x", "text": "a", "likes": -1}, "'likes' is -1. It must be at least 0"),
        ({"item": "x", "text": "a", "likes": "many"}, "'likes' is 'many'. It must be a number"),
        ({"item": "x", "text": " ", "likes": 1}, "item 'x' has no text"),
    ):
        (tmp_path / CATALOGUE_FILE).write_text(json.dumps(row) + "\n")
        with pytest.raises(DataError, match=message):
            read_catalogue(tmp_path / CATALOGUE_FILE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_history": 0}, "max_history is 0. It must be at least 1"),
        ({"history_decay": 0.0}, r"history_decay is 0\.0\. It must be above 0"),
        ({"history_decay": 1.5}, r"history_decay is 1\.5"),
        ({"max_item_tokens": 2}, "max_item_tokens is 2. It must be at least 3"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"popularity_prior": -1.0}, r"popularity_prior is -1\.0"),
        ({"num_recommended": 0}, "num_recommended is 0"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        RecommendationTask(**settings)


@torch.no_grad()
def test_an_export_is_an_embedding_model_with_its_catalogue(tmp_path, tokenizer):
    """Following the files of sentence-transformers with transformers alone gives the item vectors."""
    task, _ = build(tmp_path / "data", tokenizer, draw_rows())
    config = CONFIGS["bert"]
    model = random_model(config, task.build_head(None, config))
    folder = tmp_path / "export"
    state, record = model.state_dict(), task.to_record()
    export_huggingface(folder, config, state, task.head_kind, tokenizer.folder, record, extra_files=task.extra_files())
    batch, inputs = both_forms("bert")
    ours = task.representations(model.head(model.encoder(batch), batch), batch)["embeddings"]
    torch.testing.assert_close(embed_by_the_files(folder, inputs), ours, atol=1e-5, rtol=1e-5)
    assert read_catalogue(folder / CATALOGUE_FILE).items == tuple(f"i{item}" for item in range(NUM_ITEMS))
