"""Groups of rows: targets, counts and loss terms by hand, the worst group's accuracy, and refused data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from framework.batch import IGNORE_INDEX
from framework.data.examples.table import TableData
from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepPlan, StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.metrics.classification import WorstGroupAccuracy
from framework.tasks.sequence_classification.groups import GroupLoss
from framework.tasks.sequence_classification.task import SequenceClassificationTask

ROWS = [
    {"text": "a", "label": "no", "sex": "f"},
    {"text": "a b", "label": "yes", "sex": "m"},
    {"text": "b", "label": "yes", "sex": "f"},
    {"text": "b a a", "label": "no", "sex": "m"},
    {"text": "a a", "label": "no", "sex": "m"},
]
BOTH = ("f,no", "f,yes", "m,no", "m,yes")
INDICES = [0, 3, 1, 2, 2]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]) + "\n")
    return Tokenizer.from_folder(folder)


def write(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def data(folder: Path, columns: str | list[str] | None = ("sex", "label"), rows=ROWS, **settings) -> TableData:
    columns = list(columns) if isinstance(columns, tuple) else columns
    return TableData(write(folder / "rows.jsonl", rows), group_column=columns, **settings)


def batch_of(source, shape=None):
    indices = np.arange(len(source))
    return source.build(StepSequences(np.zeros_like(indices), indices, indices), 0, shape)


def test_each_group_has_a_term_with_its_own_count(tokenizer: Tokenizer, tmp_path: Path):
    task = SequenceClassificationTask(group_loss="worst", class_weights={"yes": 3.0})
    source = task.build_sources(data(tmp_path), tokenizer, 0)["train"]
    assert task.groups.names == BOTH and task.weight_step_size == 0.01
    assert task.loss_weights == {f"group_{name}": 0.25 for name in BOTH}
    batch = batch_of(source, FixedShape(24, 8, 1, 8))
    assert batch.targets["groups"].tolist() == [*INDICES, *[IGNORE_INDEX] * 3]
    assert batch.counts == {"group_f,no": 1.0, "group_f,yes": 3.0, "group_m,no": 2.0, "group_m,yes": 3.0}
    logits = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sums = task.loss_sums({"logits": logits}, batch)
    log_probabilities = logits.detach().double().log_softmax(-1)
    expected = dict.fromkeys(BOTH, 0.0)
    for row, (group, values) in enumerate(zip(INDICES, ROWS, strict=True)):
        is_yes = values["label"] == "yes"
        expected[BOTH[group]] -= (3.0 if is_yes else 1.0) * float(log_probabilities[row, int(is_yes)])
    assert {name: value.item() for name, value in sums.items()} == pytest.approx(
        {f"group_{name}": value for name, value in expected.items()}, rel=1e-6
    )
    assert torch.isfinite(torch.autograd.grad(sum(sums.values()), logits)[0]).all()


def test_without_a_group_loss_groups_are_only_measured(tokenizer: Tokenizer, tmp_path: Path):
    task = SequenceClassificationTask()
    source = task.build_sources(data(tmp_path, "sex"), tokenizer, 0)["train"]
    assert (task.groups.names, task.best_metric, task.weight_step_size) == (("f", "m"), "accuracy", None)
    batch = batch_of(source)
    assert batch.counts == {"classification": 5.0} and list(task.loss_sums({"logits": torch.zeros(5, 2)}, batch)) == [
        "classification"
    ]
    metrics = task.build_metrics()
    logits = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1]])  # wrong: row 2 (f), row 4 (m)
    task.update_metrics(metrics, {"logits": logits}, batch)
    assert metrics["worst_group_accuracy"].compute().item() == 0.5
    assert metrics["accuracy"].compute().item() == pytest.approx(0.6)


def test_the_worst_group_is_one_with_targets():
    metric = WorstGroupAccuracy(3)
    logits = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0]])
    metric.update(logits[:1], torch.tensor([IGNORE_INDEX]), torch.tensor([IGNORE_INDEX]))
    assert metric.compute().item() == 0.0
    metric.update(logits, torch.tensor([0, 1, 0, IGNORE_INDEX]), torch.tensor([2, 2, 0, IGNORE_INDEX]))
    assert metric.compute().item() == 0.5
    metric.update(logits[:2], torch.tensor([0, 0]), torch.tensor([2, 2]))
    assert metric.compute().item() == 0.75


def test_a_trained_task_keeps_its_groups_and_accepts_data_without(tokenizer: Tokenizer, tmp_path: Path):
    task = SequenceClassificationTask(group_loss=GroupLoss(step_size=0.5))
    task.build_sources(data(tmp_path), tokenizer, 0)
    assert (task.weight_step_size, task.best_metric) == (0.5, "worst_group_accuracy")
    again = SequenceClassificationTask(group_loss="worst")
    again.restore(json.loads(json.dumps(task.to_record())))
    source = again.build_sources(data(tmp_path, rows=ROWS[:2]), tokenizer, 0)["train"]
    assert batch_of(source).targets["groups"].tolist() == INDICES[:2]
    assert set(again.loss_weights) == {f"group_{name}" for name in BOTH}
    source = again.build_sources(data(tmp_path, []), tokenizer, 0)["train"]
    assert batch_of(source).counts == {"classification": 5.0} and again.loss_weights == {"classification": 1.0}
    assert "worst_group_accuracy" not in again.build_metrics()
    with pytest.raises(DataError, match=r"row 1 .*: the group 'x,no' has no row in `train`\."):
        again.build_sources(data(tmp_path, rows=[ROWS[0] | {"sex": "x"}]), tokenizer, 0)


REFUSED = {
    "missing_column": ({"columns": "gender"}, {}, DataError, r"rows\.jsonl.*gender"),
    "no_column": ({"columns": None}, {}, ConfigError, r"task\.group_loss is set, but data\.group_column is null"),
    "one_group": (
        {"columns": "sex", "where": {"sex": "m"}},
        {},
        DataError,
        r"has 1 group, such as 'm'\. There must be",
    ),
    "empty": ({"rows": [*ROWS, {"text": "a", "label": "no", "sex": " "}]}, {}, DataError, r"'sex' is empty"),
    "balance": (
        {"columns": None, "balance": "group"},
        {"group_loss": None},
        ConfigError,
        r"data\.balance is set, but data\.group_column is null\. It needs the group of each row",
    ),
    "metric": (
        {"columns": None},
        {"group_loss": None, "best_metric": "worst_group_accuracy"},
        ConfigError,
        r"best_metric is worst_group_accuracy, but data\.group_column is null",
    ),
}


@pytest.mark.parametrize(("of_data", "of_task", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_data_without_usable_groups_is_refused(
    of_data: dict, of_task: dict, error: type, message: str, tokenizer: Tokenizer, tmp_path: Path
):
    task = SequenceClassificationTask(**{"group_loss": "worst"} | of_task)
    with pytest.raises(error, match=message):
        task.build_sources(data(tmp_path, **of_data), tokenizer, 0)


def test_a_balanced_split_has_equal_groups_and_other_splits_do_not(tokenizer: Tokenizer, tmp_path: Path):
    rows = [ROWS[0]] * 30 + [ROWS[1]] * 5
    validation = write(tmp_path / "validation.jsonl", rows)
    settings = data(tmp_path, "sex", rows, balance="group", validation=validation)
    sources = SequenceClassificationTask().build_sources(settings, tokenizer, 0)
    plan = StepPlan(sources["train"], 0, 10, 200)
    assert len(plan) == 4 and plan.source.mean_length == (3 + 4) / 2
    indices = np.concatenate([plan.sequences(step).indices for step in range(4)])
    assert np.bincount(indices >= 30).tolist() == [17, 18]
    assert StepPlan(sources["validation"], 0, 40, 200, shuffle=False).sequences(0).indices.tolist() == list(range(35))


def test_a_group_without_training_rows_is_refused(tokenizer: Tokenizer, tmp_path: Path):
    other = write(tmp_path / "other.jsonl", [ROWS[0] | {"sex": "x"}])
    with pytest.raises(DataError, match=r"other\.jsonl, row 1 .*: the group 'x' has no row in `train`"):
        SequenceClassificationTask(group_loss="worst").build_sources(
            data(tmp_path, "sex", validation=other), tokenizer, 0
        )
    measured = SequenceClassificationTask()
    measured.build_sources(data(tmp_path, "sex", validation=other), tokenizer, 0)
    assert measured.groups.names == ("f", "m", "x")


@pytest.mark.parametrize("columns", ["", ["sex", ""]])
def test_names_of_columns_are_checked(columns: str | list[str], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data\.group_column is .*\. It must name a column, or a list of columns"):
        data(tmp_path, columns)


def test_the_step_size_is_checked():
    with pytest.raises(ConfigError, match=r"task\.group_loss\.step_size is 0\. It must be above 0"):
        GroupLoss(step_size=0)
