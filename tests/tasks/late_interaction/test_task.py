"""Token sequences of both sides by hand, the loss against loops over texts, and refused settings."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from framework.batch import DUMMY_SEQUENCE_ID
from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.modules.passes.contributions import rows_of_step
from framework.tasks.embedding.data import TextGroup, TextPairData
from framework.tasks.embedding.features import match_source
from framework.tasks.late_interaction.layout import Side, SidedLayout
from framework.tasks.late_interaction.task import LateInteractionTask
from tests.support.commands.in_process import TEXTS, train_vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary([*TEXTS, "q d . , [ ]"], 95, folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"]["[unused0]"] = len(content["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer.from_folder(folder)


def test_layout_of_both_sides(tokenizer):
    """The document marker is text, whose brackets are punctuation; the query marker is a token of the vocabulary."""
    layout_of = SidedLayout(Side("query", "[unused0] ", 7, True), Side("document", "[d] ", 9), True)
    texts, is_document = ["a good film", "a, a", "bad", "a a a a a a a"], np.array([False, True, False, True])
    layout, targets = layout_of(texts, is_document, tokenizer, 9)
    cls, sep, mask = (tokenizer.special_tokens[name] for name in ("cls", "sep", "mask"))
    tokens = [tokenizer.backend.id_to_token(token_id) for token_id in layout.input_ids]
    split = np.split(tokens, np.cumsum(layout.lengths)[:-1])
    assert [part.tolist() for part in split] == [
        [cls, "[unused0]", "a", "good", "film", sep, mask],
        [cls, "[", "d", "]", "a", ",", "a", sep],
        [cls, "[unused0]", "bad", sep, mask, mask, mask],
        [cls, "[", "d", "]", "a", "a", "a", "a", sep],
    ]
    skipped = {(text, place) for text, part in enumerate(split) for place, token in enumerate(part) if token in "[,]"}
    own = np.split(targets["is_scored"], np.cumsum(layout.lengths)[:-1])
    assert {(text, place) for text, part in enumerate(own) for place in np.flatnonzero(part == 0)} == skipped
    assert len(skipped) == 5
    assert (layout.cutting.texts, layout.cutting.cut, layout.cutting.lost) == (4, 1, 3)
    assert LateInteractionTask(skip_punctuation=False).sides(texts, is_document, tokenizer, 9)[1]["is_scored"].all()


GROUPS = [("a good film", "a fine film, of 1990", "bad"), ("bad", "a poor film."), ("poor", "a fine film, of 1990")]


def step(tokenizer, task, shape=None):
    groups = [TextGroup("rows.csv, row 1", texts) for texts in GROUPS]
    source = match_source(groups, ["a"], list(task.loss_weights), tokenizer, task.max_length, task.sides)
    indices = np.arange(4)
    batch = source.build(StepSequences(np.zeros(4), indices, indices), 0, shape)
    vectors = functional.normalize(torch.randn(len(batch.input_ids), 4, generator=torch.Generator().manual_seed(0)))
    return batch, vectors.requires_grad_()


def test_the_loss_equals_loops_over_texts(tokenizer):
    """Queries 0 and 2 share an answer, which is no negative for them; filler and punctuation count nowhere."""
    task = LateInteractionTask(symmetric=True, temperature=0.5, query_length=9, document_length=12)
    batch, vectors = step(tokenizer, task, FixedShape(90, 12, None, 12))
    sums = task.step_loss_sums(rows_of_step([task.representations({"vectors": vectors}, batch)], None))
    parts = (each.split(list(batch.lengths)) for each in (vectors, batch.targets["is_scored"]))
    kept = [part[mask > 0] for part, mask in zip(*parts, strict=True)]
    assert batch.sequence_ids[8] == DUMMY_SEQUENCE_ID and len(kept[1]) < batch.lengths[1]

    def score(query, document):
        return (kept[query] @ kept[document].T).max(dim=1).values.sum() / 0.5

    # Sequences: query, positive, negative; query, positive; query, positive; candidate. The negative equals query 3.
    allowed = {0: [1, 2, 4], 3: [4, 1, 6], 5: [6, 2, 4]}
    forward = sum(
        -torch.stack([score(query, other) for other in all_]).log_softmax(0)[0] for query, all_ in allowed.items()
    )
    anchors = {1: [0, 3], 4: [3, 0, 5], 6: [5, 3]}
    backward = sum(
        -torch.stack([score(other, doc) for other in all_]).log_softmax(0)[0] for doc, all_ in anchors.items()
    )
    for name, expected in (("contrast", forward), ("reverse_contrast", backward)):
        torch.testing.assert_close(sums[name], expected)
        gradients = [torch.autograd.grad(loss, vectors, retain_graph=True)[0] for loss in (sums[name], expected)]
        torch.testing.assert_close(*gradients)
    decoded = task.decode({"vectors": vectors.detach()}, batch)
    assert [len(item) for item in decoded] == [2, 2, 2, 1]
    assert np.array_equal(decoded[1][1], kept[4].detach().numpy())
    scores = task.index([decoded[0][1], decoded[3][0]])([decoded[0][0], decoded[2][0]])
    expected = [[score(query, document).item() * 0.5 for document in (1, 7)] for query in (0, 5)]
    assert scores == pytest.approx(np.array(expected), rel=1e-5)


def test_scores_follow_those_of_a_teacher(tokenizer):
    """An item without a hard negative has no second candidate, and loss 0."""
    task = LateInteractionTask(
        "margin_mse", skip_punctuation=False, temperature=0.5, query_length=9, document_length=12
    )
    taught = zip(GROUPS, ((3.0, 1.0), (2.0,)), strict=False)
    groups = [TextGroup("", texts, teacher_scores=scores) for texts, scores in taught]
    source = match_source(groups, [], list(task.loss_weights), tokenizer, task.max_length, task.sides)
    batch = source.build(StepSequences(np.zeros(2), np.arange(2), np.arange(2)), 0)
    vectors = functional.normalize(torch.randn(len(batch.input_ids), 4, generator=torch.Generator().manual_seed(0)))
    loss = task.step_loss_sums(rows_of_step([task.representations({"vectors": vectors}, batch)], None))["margin_mse"]
    query, positive, negative = vectors.split(list(batch.lengths))[:3]
    margin = sum(
        sign * (query @ text.T).max(dim=1).values.sum() / 0.5 for sign, text in ((1, positive), (-1, negative))
    )
    assert loss.item() == pytest.approx((margin - 2.0).square().item(), rel=1e-4)
    assert batch.counts == {"margin_mse": 1.0}


def test_rows_to_predict_are_queries_or_documents(tokenizer):
    # [CLS] a , a [SEP] and three [MASK]; [CLS] [ d ] a , a [SEP] without its punctuation.
    for side, expected in (("query", 8), ("document", 5)):
        task = LateInteractionTask(query_length=8, document_length=9, query_marker="", expand_queries=True, side=side)
        source = task.build_source([Row(1, None, {"text": "a, a"})], tokenizer)
        batch = source.build(StepSequences(np.zeros(1), np.arange(1), np.arange(1)), 0)
        assert batch.lengths == (8,)
        decoded = task.decode({"vectors": torch.ones(8, 2)}, batch)
        assert [len(row["vectors"]) for row in task.assemble(source, decoded)] == [expected]


@pytest.mark.parametrize("marker", ["[d] ", "[unused0]"])
def test_matches_sum_to_the_score(tokenizer, marker):
    """Each scored token of the query has the most similar document token, with their places in the texts."""
    task = LateInteractionTask(query_length=6, document_length=12, query_marker=marker, document_marker=marker)
    texts = {"text": "a good film, bad", "pair": "poor, a fine"}
    source = task.build_source([Row(1, None, texts)], tokenizer)
    batch = source.build(StepSequences(np.zeros(1), np.arange(1), np.arange(1)), 0)
    vectors = functional.normalize(torch.randn(len(batch.input_ids), 4, generator=torch.Generator().manual_seed(0)))
    (decoded,) = task.decode({"vectors": vectors}, batch)
    exact = task.exact_explanation(source, 0, decoded, texts, tokenizer)
    (prediction,) = task.assemble(source, [decoded])
    matches = exact.details["matches"]
    assert sum(match["similarity"] for match in matches) == pytest.approx(prediction["score"], abs=1e-5) == exact.score
    tokens = [tokenizer.backend.id_to_token(token_id) for token_id in batch.input_ids.tolist()]
    query, document = (part.numpy() for part in vectors.split(list(batch.lengths)))
    counted = batch.targets["is_scored"].numpy()[len(query) :] > 0
    best = np.where(counted, query @ document.T, -2).argmax(axis=1)
    assert [match["document_token"] for match in matches] == [tokens[len(query) + place] for place in best]
    assert [match["token"] for match in matches] == tokens[: len(query)]
    for prefix, field in (("", "text"), ("document_", "pair")):
        for match in matches:
            start, end = match[f"{prefix}start"], match[f"{prefix}end"]
            assert start is None or texts[field][start:end] == match[f"{prefix}token"]
    # Six tokens: two special ones, one or three of the marker, and the first three or the first of the text.
    assert [(each.field, each.start) for each in exact.spans.cut] == [("text", 11 if marker == "[unused0]" else 2)]


def test_refused_settings(tokenizer, tmp_path):
    with pytest.raises(
        ConfigError, match=r"task.query_marker is 'a good film '.*has 3 tokens.*query_length is 5.*at least 6"
    ):
        Side("query", "a good film ", 5).lay_out(["a"], tokenizer)
    (tmp_path / "rows.csv").write_text("text,label\na,x\nb,y\n", encoding="utf-8")
    data = TextPairData(str(tmp_path / "rows.csv"), pair_column=None, label_column="label")
    with pytest.raises(ConfigError, match=r"rows of the data are labelled.*Set data\.pair_column"):
        LateInteractionTask().build_sources(data, tokenizer, 0)
