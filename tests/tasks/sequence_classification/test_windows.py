"""Classification of long texts in windows: sequences by hand, scores by slow loops, and independence of the packing."""

import numpy as np
import pytest
import torch
from torch import Tensor

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.examples.table import TableData
from framework.data.flat_source import FlatSource
from framework.data.planning.collate import FixedShape, RoundedShape
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.inference.explained_rows import scored_words
from framework.models.encoder import TransformerEncoder
from framework.modules.explanations.attribution import Attribution
from framework.tasks.explanation import Explained
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.sequence_classification.windows import Scoring, first_windows
from framework.tasks.task import TaskModel
from tests.support.models.tiny import set_random_weights, tiny_config

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
A, B, C, D, E = range(5, 10)
TEXTS = ["a b c d e f g h a b c", "b a", "c c c c d d d d e e e e f f f f g g", "h", "a b c d e f"]
MAX_LENGTH, STRIDE = 6, 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Tokenizer.from_folder(folder)


def built(tokenizer, tmp_path, windows, problem="single_label", labels="xyxyz", **keys):
    """Returns a task, and its training source."""
    path = tmp_path / f"{problem}.csv"
    path.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in zip(TEXTS, labels, strict=True)))
    scoring = Scoring(windows=windows, stride=STRIDE)
    task = SequenceClassificationTask(MAX_LENGTH, problem=problem, scoring=scoring, classifier_dropout=0.0, **keys)
    return task, task.build_sources(TableData(train=str(path)), tokenizer, 0)["train"]


def model_of(task) -> TaskModel:
    encoder = TransformerEncoder(tiny_config(modern=True))
    model = TaskModel(encoder, task.build_head(encoder, tiny_config(modern=True)))
    set_random_weights(model, seed=0)
    return model


def batch_of(source: FlatSource, items: list[int], shape=None) -> PackedBatch:
    indices = np.array(items, dtype=np.int64)
    return source.build(StepSequences(np.zeros_like(indices), indices, indices), 0, shape)


def test_windows_by_hand(tokenizer, tmp_path):
    _, source = built(tokenizer, tmp_path, "mean")
    batch = batch_of(source, [4, 1])
    # Windows of 4 tokens begin at 0 and 2, and the second one reaches the end of a b c d e f.
    assert batch.input_ids.tolist() == [2, A, B, C, D, 3, 2, C, D, E, 10, 3, 2, B, A, 3]
    assert batch.lengths == (6, 6, 4) and batch.item_indices() == [4, 1]
    assert batch.targets["labels"].tolist() == [2, IGNORE_INDEX, 1]
    assert batch.counts == {"classification": 2.0}
    assert [len(source), source.group_size] == [5, 8]
    assert dict(source.facts.notes) == {"windows": "17"} and source.facts.rows == 5


@pytest.mark.parametrize("windows", ["mean", "max"])
@pytest.mark.parametrize(
    ("problem", "labels"),
    [("single_label", "xyxyz"), ("multi_label", ["x|y", "y", "", "x", "z"]), ("regression", "12345")],
)
def test_a_text_has_one_score_and_one_loss_whatever_the_packing(tokenizer, tmp_path, windows, problem, labels):
    task, source = built(tokenizer, tmp_path, windows, problem, labels)
    model = model_of(task)
    together = batch_of(source, [0, 1, 2, 3, 4])
    scores = first_windows(model(together)["logits"], together)
    # Slowly: each window alone, without the pooling of windows.
    model.head.window_pooling = None
    for item, expected in enumerate(scores):
        tokens = source.tokens(np.array([item]))
        alone = model(batch_of(source, [item]))["logits"]
        assert len(alone) == len(tokens.lengths)
        slow = sum(alone) / len(alone) if windows == "mean" else torch.stack(list(alone)).amax(0)
        torch.testing.assert_close(expected, slow, rtol=1e-5, atol=1e-5)
    # A text that fits in one window has the scores that it has without windows, bit for bit.
    plain = SequenceClassificationTask(MAX_LENGTH, problem=problem, classifier_dropout=0.0)
    plain.problem, model.head.window_pooling = task.problem, windows
    _, without = built(tokenizer, tmp_path, None, problem, labels)
    ours, theirs = model(batch_of(source, [1, 3]))["logits"], None
    model.head.window_pooling = None
    theirs = model(batch_of(without, [1, 3]))["logits"]
    assert torch.equal(ours, theirs)
    model.head.window_pooling = windows

    def gradients(groups: list[list[int]], shape=None) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        batches = [batch_of(source, each, shape) for each in groups]
        total = sum(task.loss_sums(model(batch), batch)["classification"] for batch in batches)
        loss = total / sum(batch.counts["classification"] for batch in batches)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    loss, grads = gradients([[0, 1, 2, 3, 4]])
    for groups, shape in (
        ([[4, 2], [], [1, 0, 3]], None),
        ([[0, 1, 2, 3, 4]], RoundedShape()),
        ([[1, 4], [0, 2, 3]], FixedShape(128, 40, None, 8)),
    ):
        other, others = gradients(groups, shape)
        torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
        for one, two in zip(grads, others, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    metrics = task.build_metrics()
    task.update_metrics(metrics, model(together), together)
    assert len(task.decode(model(together), together)) == 5


def test_explanations_locate_each_token_in_the_text(tokenizer, tmp_path):
    task, source = built(tokenizer, tmp_path, "max")
    spans = task.explained_spans(source, Explained(4, 0), {"text": TEXTS[4]}, tokenizer)
    ids = batch_of(source, [4]).input_ids
    for token, span in spans.spans.items():
        assert TEXTS[4][span.start : span.end] == WORDS[ids[token]]
    assert sorted(spans.spans) == [1, 2, 3, 4, 7, 8, 9, 10] and spans.tokens == range(12)
    # The words c and d are in both windows: 3 + 1 and 4 + 2.
    attribution = Attribution(ids.numpy(), np.array([0, 5, 6, 3, 4, 0, 0, 1, 2, 7, 8, 0.0]), 0.0, 0.0, None)
    words = {word["text"]: word["score"] for word in scored_words(attribution, spans, tokenizer)}
    assert words == {"a": 5, "b": 6, "c": 4, "d": 6, "e": 7, "f": 8}
    batch = batch_of(source, [1, 4])
    logits = torch.arange(9.0).view(3, 3)
    assert task.explained_scores({"logits": logits}, batch, [2, 0]).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 0}, "task.stride is 0. With task.windows it must be at least 1 and at most task.max_length - 2"),
        ({"stride": 5}, "here 4. Change one of them"),
    ],
)
def test_a_stride_that_skips_tokens_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        SequenceClassificationTask(MAX_LENGTH, scoring=Scoring(windows="mean", **change))


def test_pairs_are_refused_and_augmentations_too(tokenizer, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("text,pair,label\na,b,x\nb,a,y\n")
    task = SequenceClassificationTask(MAX_LENGTH, scoring=Scoring(windows="mean"))
    with pytest.raises(ConfigError, match=r"task.windows is mean, and data.pair_column is pair. Windows need one text"):
        task.build_sources(TableData(train=str(path), pair_column="pair"), tokenizer, 0)
    assert not task.allows_augmentation and SequenceClassificationTask().allows_augmentation
    assert Scoring(windows="mean").stride_of(128) == 63
