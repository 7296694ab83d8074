"""Multiple choice: items by hand, loss against plain torch and transformers, metrics and predictions by hand."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from framework.batch import PackedBatch
from framework.config.checks import check_compiled_items
from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.published.kinds import MULTIPLE_CHOICE
from framework.tasks.multiple_choice.data import ChoiceData, ChoiceExample
from framework.tasks.multiple_choice.features import choice_source
from framework.tasks.multiple_choice.task import MultipleChoiceTask
from tests.support.models import peers

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
EXAMPLES = [
    ChoiceExample("1", "a b", None, ("c", "d e"), 1),
    ChoiceExample("2", "a", "b c d e f g", ("h", "a", "b"), 0),
    ChoiceExample("3", "a", None, ("b", "c"), None),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Tokenizer.from_folder(folder)


@pytest.fixture
def batch(tokenizer) -> PackedBatch:
    items = np.arange(3)
    return choice_source(EXAMPLES, tokenizer, 9).build(StepSequences(items * 0, items, items), 0)


def padded_with_dummies(batch: PackedBatch, number: int) -> dict[str, torch.Tensor]:
    filler = {"choice_places": 0, "is_right": -100}
    return {name: torch.cat([values, torch.full((number,), filler[name])]) for name, values in batch.targets.items()}


def test_items_by_hand(batch):
    assert [" ".join(WORDS[each] for each in ids) for ids in batch.input_ids.split(batch.lengths)] == [
        "[CLS] a b [SEP] c [SEP]",
        "[CLS] a b [SEP] d e [SEP]",
        "[CLS] b c d e [SEP] a h [SEP]",
        "[CLS] b c d e [SEP] a a [SEP]",
        "[CLS] b c d e [SEP] a b [SEP]",
        "[CLS] a [SEP] b [SEP]",
        "[CLS] a [SEP] c [SEP]",
    ]
    assert batch.targets["choice_places"].tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert batch.targets["is_right"].tolist() == [0, 1, 1, 0, 0, -100, -100]
    assert batch.counts == {"choice": 2.0}
    assert batch.item_indices() == [0, 1, 2]


def test_loss_metrics_and_predictions(tokenizer, batch):
    task = MultipleChoiceTask(max_length=9)
    assert task.head_kind == MULTIPLE_CHOICE.name
    batch = replace(batch, targets=padded_with_dummies(batch, 2))
    logits = torch.tensor([[1.0], [2.0], [0.5], [3.0], [-1.0], [4.0], [1.0], [9.0], [9.0]], requires_grad=True)
    plain = [torch.tensor([1.0, 2.0]).log_softmax(0)[1], torch.tensor([0.5, 3.0, -1.0]).log_softmax(0)[0]]
    losses = task.sequence_losses({"logits": logits}, batch)
    torch.testing.assert_close(losses, torch.tensor([0, -plain[0], -plain[1], 0, 0, 0, 0, 0, 0]))
    task.loss_sums({"logits": logits}, batch)["choice"].backward()
    gradient = torch.zeros(9)
    gradient[:2] = torch.tensor([1.0, 2.0]).softmax(0) - torch.tensor([0.0, 1.0])
    gradient[2:5] = torch.tensor([0.5, 3.0, -1.0]).softmax(0) - torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(logits.grad[:, 0], gradient)
    metrics = task.build_metrics()
    task.update_metrics(metrics, {"logits": logits.detach()}, batch)
    assert metrics["accuracy"].compute().item() == 0.5
    source = choice_source(EXAMPLES, tokenizer, 9)
    predictions = task.assemble(source, task.decode({"logits": logits.detach()}, batch))
    assert [(row["answer"], row["index"], row["choices"]) for row in predictions] == [
        ("d e", 1, ["c", "d e"]),
        ("a", 1, ["h", "a", "b"]),
        ("b", 0, ["b", "c"]),
    ]
    assert predictions[1]["probabilities"] == pytest.approx(torch.tensor([0.5, 3.0, -1.0]).softmax(0).tolist())
    assert task.class_scores == {}


@torch.no_grad()
def test_loss_equals_that_of_transformers(tokenizer):
    peer = peers.peer("BertForMultipleChoice", "bert").eval()
    examples = [ChoiceExample("1", "a b", None, ("c d", "e"), 1), ChoiceExample("2", "h", None, ("c", "d e f"), 0)]
    source = choice_source(examples, tokenizer, 9)
    batch = source.build(StepSequences(np.zeros(2, dtype=np.int64), np.arange(2), np.arange(2)), 0)
    sequences = zip(batch.input_ids.split(batch.lengths), batch.token_type_ids.split(batch.lengths), strict=True)
    rows = [[torch.nn.functional.pad(part, (0, 9 - len(part))) for part in pair] for pair in sequences]
    input_ids, token_type_ids = (torch.stack(parts).view(2, 2, 9) for parts in zip(*rows, strict=True))
    mask = (torch.arange(9) < torch.tensor(batch.lengths)[:, None]).view(2, 2, 9).long()
    expected = peer(input_ids, mask, token_type_ids, labels=torch.tensor([1, 0]))
    ours = MultipleChoiceTask().loss_sums({"logits": expected.logits.view(4, 1)}, batch)["choice"] / 2
    torch.testing.assert_close(ours, expected.loss)


def test_prediction_reads_lists(tokenizer):
    task = MultipleChoiceTask(max_length=9)
    task.restore({"has_context": True})
    assert task.fields == ("question", "context", "choices") and task.list_fields == ("choices",)
    row = {"question": "a", "context": "b", "choices": json.dumps(["c", "d"])}
    source = task.build_source([Row(1, 1, row)], tokenizer)
    assert source.records[0].context == "b" and source.records[0].choices == ("c", "d")
    for change, message in (({"choices": "c"}, "row 1: the choices are 'c'"), ({"context": " "}, "'context' is empty")):
        with pytest.raises(DataError, match=message):
            task.check_row(Row(1, None, row | change), tokenizer)


def test_compilation_is_rejected(tokenizer):
    settings = SimpleNamespace(strategy=SimpleNamespace(compile="layers"))
    with pytest.raises(ConfigError, match="items of this task hold up to 3 sequences"):
        check_compiled_items(settings, {"train": choice_source(EXAMPLES, tokenizer, 9)})
    settings.strategy.compile = "none"
    check_compiled_items(settings, {"train": choice_source(EXAMPLES, tokenizer, 9)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"max_length": 4}, "max_length is 4"), ({"pooling": "x"}, "pooling is 'x'"), ({"classifier_dropout": 1}, "is 1")],
)
def test_impossible_settings_are_rejected(arguments, message):
    with pytest.raises(ConfigError, match=message):
        MultipleChoiceTask(**arguments)


def test_the_data_show_whether_there_are_contexts(tokenizer, tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("question,story,x,y,label\na,b c,d,e,0\n")
    data = ChoiceData(str(path), context_column="story", choice_columns=["x", "y"])
    task = MultipleChoiceTask()
    assert len(task.build_sources(data, tokenizer, 0)["train"]) == 1
    assert task.to_record() == {"pooling": "cls", "max_length": 128, "has_context": True}
