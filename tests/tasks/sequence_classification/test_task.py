"""Sequence classification: layout and truncation compared with the tokenizers library, labels, loss and metrics."""

import numpy as np
import pytest
import tokenizers
import torch

from framework.batch import IGNORE_INDEX
from framework.data.examples.table import TableData
from framework.data.layout import truncate_longest_first
from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.tasks.sequence_classification.features import classification_source
from framework.tasks.sequence_classification.single_label import SingleLabel
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.sequence_classification.windows import Scoring

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Tokenizer.from_folder(folder)


def published_pipeline(max_length: int) -> tokenizers.Tokenizer:
    """Builds BERT's own pipeline: template, truncation and all."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    pipeline = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pipeline.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    pipeline.enable_truncation(max_length, strategy="longest_first")
    return pipeline


def random_texts(number: int, longest: int) -> list[str]:
    random = np.random.default_rng(longest)
    return [" ".join(random.choice(list("abcdefgh"), size=1 + random.integers(longest))) for _ in range(number)]


def source_of(texts, pairs, answers, tokenizer, max_length):
    """Builds items with the labels "no" and "yes"; answers may be None."""
    problem = SingleLabel()
    problem.learn(["no", "yes"], [])
    return classification_source(texts, pairs, answers or [None] * len(texts), problem, tokenizer, max_length)


def test_mean_length_counts_special_tokens(tokenizer):
    source = source_of(["a b c", "a", "a b c d e f g h"], None, None, tokenizer, 6)
    assert source.mean_length == (5 + 3 + 6) / 3


@pytest.mark.parametrize("max_length", [5, 6, 9, 10, 40])
@pytest.mark.parametrize("paired", [False, True])
def test_sequences_equal_those_of_the_published_pipeline(tokenizer, max_length, paired):
    texts, pairs = random_texts(60, 14), random_texts(60, 13) if paired else None
    inputs = texts if pairs is None else list(zip(texts, pairs, strict=True))
    expected = published_pipeline(max_length).encode_batch(inputs)
    source = source_of(texts, pairs, None, tokenizer, max_length)
    order = np.random.default_rng(0).permutation(60)
    epochs = np.zeros_like(order)
    batch = source.build(StepSequences(epochs, order, order + 100), step=0)
    assert batch.lengths == tuple(source.lengths(epochs, order).tolist())
    assert [ids.tolist() for ids in batch.input_ids.split(batch.lengths)] == [expected[i].ids for i in order]
    segments = [ids.tolist() for ids in batch.token_type_ids.split(batch.lengths)]
    assert segments == [expected[i].type_ids for i in order]
    assert batch.sequence_ids.tolist() == (order + 100).tolist()
    assert max(batch.lengths) <= max_length


def test_a_micro_batch_by_hand(tokenizer):
    source = source_of(["a b", "c", "h a e"], None, ["yes", None, "no"], tokenizer, 4)
    batch = source.build(StepSequences(np.array([0, 0]), np.array([2, 1]), np.array([5, 6])), step=0)
    # h a e is truncated to four tokens: [CLS] h a [SEP]; then [CLS] c [SEP]
    assert batch.input_ids.tolist() == [2, 12, 5, 3, 2, 7, 3]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.targets["labels"].tolist() == [0, IGNORE_INDEX]
    assert batch.counts == {"classification": 1.0}


def test_an_empty_micro_batch_has_one_dummy_and_no_targets(tokenizer):
    source = source_of(["a b"], ["c"], ["yes"], tokenizer, 8)
    none = np.zeros(0, dtype=np.int64)
    batch = source.build(StepSequences(none, none, none), step=3)
    assert (batch.num_sequences, batch.num_tokens, batch.lengths) == (0, 0, (1,))
    assert batch.targets["labels"].tolist() == [IGNORE_INDEX]
    assert batch.counts == {"classification": 0.0}
    full = source.build(StepSequences(none, none, none), 3, FixedShape(12, 2, 1, 8))
    assert full.lengths == (6, 6)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Removes one token at a time from the longer text; on ties from the one that was not the longer at first."""
    second_longer = first <= second
    while first + second > room:
        if first > second or (first == second and second_longer):
            first -= 1
        else:
            second -= 1
    return first, second


def test_truncation_removes_from_the_longer_text():
    sizes = np.array([(first, second) for first in range(12) for second in range(12)])
    for room in (2, 5, 8):
        expected = [longest_first(first, second, room) for first, second in sizes.tolist()]
        assert truncate_longest_first(sizes[:, 0], sizes[:, 1], room).T.tolist() == [list(pair) for pair in expected]


def test_a_table_becomes_sources_and_labels(tokenizer, tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"{'a b c d'[: 1 + 2 * (i % 4)]},{'xyz'[i % 3]}\n" for i in range(24)))
    task = SequenceClassificationTask(max_length=5)
    sources = task.build_sources(TableData(str(path)), tokenizer, seed=0)
    assert task.labels == ("x", "y", "z")
    assert task.to_record() == {
        "problem": "single_label",
        "labels": ["x", "y", "z"],
        "pooling": "cls",
        "max_length": 5,
        "has_pairs": False,
    }
    rows = np.arange(24)
    batch = sources["train"].build(StepSequences(np.zeros_like(rows), rows, rows), 0)
    assert batch.targets["labels"].tolist() == [0, 1, 2] * 8
    assert set(task.build_metrics()) == {"accuracy", "macro_f1", "matthews"}
    assert batch.lengths == (3, 4, 5, 5) * 6


def test_an_earlier_label_set_is_kept(tokenizer, tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,x\nb,z\n")
    task = SequenceClassificationTask()
    task.restore({"labels": ["z", "y", "x"], "pooling": "cls"})
    batch = task.build_sources(TableData(str(path)), tokenizer, seed=0)["train"].build(
        StepSequences(np.zeros(2, dtype=np.int64), np.arange(2), np.arange(2)), 0
    )
    assert batch.targets["labels"].tolist() == [2, 0]


def test_loss_and_metrics_exclude_fillers(tokenizer):
    task = SequenceClassificationTask()
    task.restore({"labels": ["no", "yes"]})
    source = source_of(["a", "b", "c"], None, ["yes", "no", "yes"], tokenizer, 8)
    rows = np.arange(3)
    batch = source.build(StepSequences(rows * 0, rows, rows), 0, FixedShape(20, 6, 1, 8))
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 0.0], *[[9.0, -9.0]] * 3], requires_grad=True)
    loss = task.loss_sums({"logits": logits}, batch)["classification"]
    # -log softmax of the label: log(1 + e^-1) + log(1 + e^-2) + log(1 + e^3)
    assert loss.item() == pytest.approx(np.log1p(np.exp([-1.0, -2.0, 3.0])).sum(), rel=1e-6)
    loss.backward()
    assert logits.grad[3:].abs().max() == 0
    assert task.sequence_losses({"logits": logits}, batch).tolist() == pytest.approx(
        [*np.log1p(np.exp([-1.0, -2.0, 3.0])), 0, 0, 0], rel=1e-6
    )
    metrics = task.build_metrics()
    task.update_metrics(metrics, {"logits": logits.detach()}, batch)
    assert metrics["accuracy"].compute().item() == pytest.approx(2 / 3)
    # F1 of "no" 2/3 (one right, one too many), of "yes" 2/3 (one right, one missed)
    assert metrics["macro_f1"].compute().item() == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 4}, "max_length is 4"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"classifier_dropout": 1.0}, "classifier_dropout is 1.0"),
        ({"scoring": Scoring(projection="mlp")}, "projection is 'mlp', which is unknown. Choose one of family, none"),
        ({"problem": "ranking"}, "problem is 'ranking', which is unknown. Choose one of single_label, multi_label"),
        (
            {"best_metric": "spearman"},
            "is 'spearman', which is unknown. Choose one of accuracy, macro_f1, matthews, worst_group_accuracy, loss",
        ),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"class_weights": {"yes": 0.0}}, "class_weights.yes is 0.0"),
        ({"class_weights": "even"}, "class_weights is 'even'"),
        ({"problem": "multi_label", "threshold": 1.0}, "threshold is 1.0"),
        ({"problem": "multi_label", "label_separator": ""}, "label_separator is empty"),
        (
            {"threshold": 0.4},
            "threshold is 0.4, but task.problem=single_label does not use it.* task.problem=multi_label",
        ),
        ({"problem": "regression", "class_weights": "balanced"}, "problem=regression does not use it"),
    ],
)
def test_impossible_settings_are_rejected(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SequenceClassificationTask(**arguments)
