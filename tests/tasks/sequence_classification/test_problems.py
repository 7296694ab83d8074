"""The problems of sequence classification: losses compared with torch, metrics with scikit-learn and scipy."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_recall_fscore_support, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch.testing import assert_close

from framework.batch import IGNORE_INDEX
from framework.data.examples.table import TableData
from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.tasks.sequence_classification.task import SequenceClassificationTask

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
NUM_ROWS = 60


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Tokenizer.from_folder(folder)


def write(path, labels):
    """Returns one text for each label; texts differ."""
    path.write_text(
        "".join(json.dumps({"text": f"a {row}", "label": label}) + "\n" for row, label in enumerate(labels))
    )
    return str(path)


def built(task, tokenizer, labels, path, test=None):
    """Returns the sources of rows with these labels in `train` and, if given, in `test`."""
    test = None if test is None else write(path / "test.jsonl", test)
    return task.build_sources(TableData(write(path / "train.jsonl", labels), test=test), tokenizer, seed=0)


def batches(source, sizes, shape=None):
    """Returns micro-batches of these sizes, in order."""
    rows = np.split(np.arange(len(source)), np.cumsum(sizes))
    return [source.build(StepSequences(np.zeros_like(part), part, part), 0, shape) for part in rows]


def metrics_of(task, source, logits):
    """Computes metrics of a split of several micro-batches, one empty, with dummies of extreme scores."""
    metrics = task.build_metrics()
    begin = 0
    for batch in batches(source, [7, 0, 20], FixedShape(4 * len(source) + 40, len(source) + 30, 1, 8)):
        filler = torch.full((len(batch.lengths) - batch.num_sequences, logits.shape[1]), 9.0)
        task.update_metrics(
            metrics, {"logits": torch.cat([logits[begin : begin + batch.num_sequences], filler])}, batch
        )
        begin += batch.num_sequences
    assert begin == len(source)
    return metrics, {name: metric.compute().item() for name, metric in metrics.items()}


def step_loss(task, source, logits, sizes):
    """Computes the loss of a step over micro-batches, and its gradient: sums over one count."""
    logits = logits.clone().requires_grad_()
    total, count, begin = torch.zeros(()), 0.0, 0
    for batch in batches(source, sizes, FixedShape(4 * len(source) + 40, len(source) + 30, 1, 8)):
        part = logits[begin : begin + batch.num_sequences]
        filler = torch.full((len(batch.lengths) - batch.num_sequences, logits.shape[1]), 9.0)
        losses = task.sequence_losses({"logits": torch.cat([part, filler])}, batch)
        assert losses.shape == (len(batch.lengths),) and losses[batch.num_sequences :].abs().sum() == 0
        sums = task.loss_sums({"logits": torch.cat([part, filler])}, batch)["classification"]
        assert_close(sums, losses.sum())
        total, count = total + sums, count + batch.counts["classification"]
        begin += batch.num_sequences
    loss = total / count
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def check_loss(actual, reference, logits):
    """Compares a loss and its gradient with a function of complete logits."""
    logits = logits.clone().requires_grad_()
    expected = reference(logits)
    assert_close(actual[0], expected.detach())
    assert_close(actual[1], torch.autograd.grad(expected, logits)[0])


LABELS = ["b"] * 31 + ["a"] * 19 + ["0"] * 10
WEIGHTS = {
    "none": (None, None),
    "balanced": ("balanced", compute_class_weight("balanced", classes=np.array(["0", "a", "b"]), y=LABELS)),
    "given": ({"b": 3.0, "0": 0.25}, [0.25, 1.0, 3.0]),
}


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("class_weights", "weights"), WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("sizes", [[], [13, 0, 30]])
def test_smoothed_and_weighted_loss_equals_that_of_torch(
    tokenizer, tmp_path, label_smoothing, class_weights, weights, sizes
):
    task = SequenceClassificationTask(label_smoothing=label_smoothing, class_weights=class_weights)
    source = built(task, tokenizer, LABELS, tmp_path)["train"]
    assert task.labels == ("0", "a", "b")
    weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)
    logits = torch.randn(NUM_ROWS, 3, generator=torch.Generator().manual_seed(0))
    reference = torch.nn.CrossEntropyLoss(weights, label_smoothing=label_smoothing)
    truth = torch.tensor([task.labels.index(label) for label in LABELS])
    check_loss(step_loss(task, source, logits, sizes), lambda x: reference(x, truth), logits)


def test_smoothed_and_weighted_loss_of_one_sequence_by_hand(tokenizer, tmp_path):
    task = SequenceClassificationTask(label_smoothing=0.3, class_weights={"b": 3.0})
    source = built(task, tokenizer, ["a", "b"], tmp_path)["train"]
    logits = torch.tensor([[0.5, -1.0], [2.0, 1.0]])
    log_probabilities = logits.double().log_softmax(-1)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    (batch,) = batches(source, [])
    actual = task.sequence_losses({"logits": logits}, batch)
    for row in (0, 1):
        spread = sum(0.3 / 2 * weights[label] * log_probabilities[row, label] for label in (0, 1))
        expected = -(0.7 * weights[row] * log_probabilities[row, row] + spread)
        assert actual[row].item() == pytest.approx(expected.item())
    assert batch.counts["classification"] == 4.0


def test_weights_are_kept_in_the_record_for_evaluation(tokenizer, tmp_path):
    task = SequenceClassificationTask(class_weights="balanced")
    built(task, tokenizer, ["a"] * 3 + ["b"], tmp_path)
    record = json.loads(json.dumps(task.to_record()))
    assert record["class_weights"] == [4 / 6, 2.0]
    again = SequenceClassificationTask(class_weights="balanced")
    again.restore(record)
    source = built(again, tokenizer, ["b", "b", "a"], tmp_path)["train"]
    assert batches(source, [])[0].counts["classification"] == pytest.approx(2.0 + 2.0 + 4 / 6)


def test_weights_of_missing_labels(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"class_weights contains 'c', which is not a label\. Labels are a, b"):
        built(SequenceClassificationTask(class_weights={"c": 2.0}), tokenizer, ["a", "b"], tmp_path)
    data = TableData(write(tmp_path / "x.jsonl", ["a", "b"]), labels=["a", "b", "c"])
    with pytest.raises(DataError, match=r"no training row has the label 'c'\. task\.class_weights=balanced"):
        SequenceClassificationTask(class_weights="balanced").build_sources(data, tokenizer, 0)


def test_single_label_metrics_and_table(tokenizer, tmp_path):
    random = np.random.default_rng(0)
    labels = random.choice(list("abc"), NUM_ROWS).tolist()
    task = SequenceClassificationTask()
    source = built(task, tokenizer, labels, tmp_path)["train"]
    logits = torch.tensor(random.normal(size=(NUM_ROWS, 3)))
    metrics, values = metrics_of(task, source, logits)
    predicted = [task.labels[index] for index in logits.argmax(-1)]
    assert values == pytest.approx(
        {
            "accuracy": accuracy_score(labels, predicted),
            "macro_f1": f1_score(labels, predicted, average="macro"),
            "matthews": matthews_corrcoef(labels, predicted),
        }
    )
    scores = precision_recall_fscore_support(labels, predicted)
    for row, *expected in zip(task.class_table(metrics, source, []), "abc", *scores, strict=True):
        assert list(row.values()) == pytest.approx(expected)


@pytest.mark.parametrize("is_trained", [True, False])
def test_out_of_scope_rows(tokenizer, tmp_path, is_trained):
    """Out-of-scope rows are a class of `train`, or only detected: then only the AUROC uses them."""
    random = np.random.default_rng(1)
    test = random.choice(["a", "b", "oos"], NUM_ROWS).tolist()
    task = SequenceClassificationTask(out_of_scope_label="oos", best_metric="out_of_scope_auroc")
    assert (task.best_metric, task.best_mode) == ("out_of_scope_auroc", "max")
    source = built(task, tokenizer, ["a", "b", "a", *["oos"] * is_trained], tmp_path, test)["test"]
    assert task.labels == (("a", "b", "oos") if is_trained else ("a", "b"))
    (batch,) = batches(source, [])
    inside = np.array([label != "oos" for label in test])
    assert batch.counts["classification"] == (NUM_ROWS if is_trained else inside.sum())
    assert (batch.targets["labels"].numpy() == IGNORE_INDEX).tolist() == (~inside & (not is_trained)).tolist()
    logits = torch.tensor(random.normal(size=(NUM_ROWS, len(task.labels))))
    _, values = metrics_of(task, source, logits)
    score = 1 - logits.softmax(-1)[:, :2].max(-1).values.numpy()
    predicted = np.array([task.labels[index] for index in logits.argmax(-1)])
    assert values["out_of_scope_auroc"] == pytest.approx(roc_auc_score(~inside, score), abs=1e-6)
    assert values["in_scope_accuracy"] == pytest.approx(accuracy_score(np.array(test)[inside], predicted[inside]))
    counted = inside | is_trained
    assert values["accuracy"] == pytest.approx(accuracy_score(np.array(test)[counted], predicted[counted]))
    predictions = task.decode({"logits": logits}, batch)
    assert [row["out_of_scope"] for row in predictions] == pytest.approx(score.tolist(), abs=1e-6)


def test_several_labels_from_cells_and_lists(tokenizer, tmp_path):
    rows = ["y | x", ["x"], "", "z", [], "x|y|x", "[1, 2]"]
    task = SequenceClassificationTask(problem="multi_label")
    (batch,) = batches(built(task, tokenizer, rows, tmp_path)["train"], [])
    assert task.labels == ("1", "2", "x", "y", "z")
    assert ["".join(map(str, row)) for row in batch.targets["labels"].tolist()] == [
        "00110", "00100", "00000", "00001", "00000", "00110", "11000",
    ]  # fmt: skip
    (batch,) = batches(
        built(
            SequenceClassificationTask(problem="multi_label", label_separator=","), tokenizer, ["a|b,c", ""], tmp_path
        )["train"],
        [],
    )
    assert batch.targets["labels"].tolist() == [[1, 1], [0, 0]]


def test_several_labels_loss_metrics_and_predictions(tokenizer, tmp_path):
    random = np.random.default_rng(2)
    truth = random.random((NUM_ROWS, 4)) < [0.5, 0.3, 0.1, 0.0]
    truth[0] = [True, True, True, False]
    rows = ["|".join(np.array(list("abcd"))[row]) for row in truth]
    task = SequenceClassificationTask(problem="multi_label", threshold=0.4)
    assert (task.best_metric, task.best_mode) == ("micro_f1", "max")
    task.restore({"labels": list("abcd")})
    source = built(task, tokenizer, rows, tmp_path)["train"]
    logits = torch.tensor(random.normal(size=(NUM_ROWS, 4)), dtype=torch.float32)
    target = torch.tensor(truth, dtype=torch.float32)
    reference = torch.nn.BCEWithLogitsLoss()
    check_loss(step_loss(task, source, logits, [11, 0, 29]), lambda x: reference(x, target), logits)
    metrics, values = metrics_of(task, source, logits)
    predicted = logits.sigmoid().numpy() > 0.4
    assert values == pytest.approx(
        {
            "micro_f1": f1_score(truth, predicted, average="micro"),
            "macro_f1": f1_score(truth, predicted, average="macro", zero_division=0),
            "exact_match": accuracy_score(truth, predicted),
        }
    )
    scores = precision_recall_fscore_support(truth, predicted, zero_division=0)
    for row, *expected in zip(task.class_table(metrics, source, []), "abcd", *scores, strict=True):
        assert list(row.values()) == pytest.approx(expected)
    (batch,) = batches(source, [])
    predictions = task.decode({"logits": logits}, batch)
    assert [row["labels"] for row in predictions] == [np.array(list("abcd"))[row].tolist() for row in predicted]
    assert predictions[3]["probabilities"] == pytest.approx(
        dict(zip("abcd", logits[3].sigmoid().tolist(), strict=True))
    )


def test_numbers(tokenizer, tmp_path):
    random = np.random.default_rng(3)
    # -100 is the filler of other targets, and must count here.
    truth = [*random.integers(0, 6, NUM_ROWS - 2).tolist(), -100, 2.5]
    task = SequenceClassificationTask(problem="regression")
    assert (task.best_metric, task.best_mode) == ("spearman", "max")
    source = built(task, tokenizer, truth, tmp_path)["train"]
    assert task.labels == () and task.problem.num_scores == 1
    logits = torch.tensor(random.integers(-3, 4, size=(NUM_ROWS, 1)) / 2, dtype=torch.float32)
    target = torch.tensor(truth, dtype=torch.float32)
    check_loss(
        step_loss(task, source, logits, [11, 0, 29]),
        lambda x: torch.nn.functional.mse_loss(x.squeeze(), target.squeeze()),
        logits,
    )
    _, values = metrics_of(task, source, logits)
    scores = logits[:, 0].numpy()
    assert values == pytest.approx(
        {
            "pearson": pearsonr(scores, truth).statistic,
            "spearman": spearmanr(scores, truth).statistic,
            "mse": np.square(scores - np.array(truth)).mean(),
        }
    )
    (batch,) = batches(source, [])
    assert [row["score"] for row in task.decode({"logits": logits}, batch)] == scores.tolist()
    assert task.class_table({}, source, []) == []
    assert SequenceClassificationTask(problem="regression", best_metric="mse").best_mode == "min"
    assert SequenceClassificationTask(best_metric="loss").best_mode == "min"


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_rows_without_labels_are_predicted_without_targets(tokenizer, tmp_path, problem):
    task = SequenceClassificationTask(problem=problem)
    built(task, tokenizer, ["1", "2", "3"], tmp_path)
    again = SequenceClassificationTask(problem=problem)
    again.restore(json.loads(json.dumps(task.to_record())))
    source = again.build_source([Row(1, None, {"text": "a b"}), Row(2, None, {"text": ""})], tokenizer)
    (batch,) = batches(source, [])
    assert batch.lengths == (4, 2) and batch.counts == {"classification": 0.0}
    logits = torch.ones(2, again.problem.num_scores, requires_grad=True)
    losses = again.sequence_losses({"logits": logits}, batch)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.tolist() == [0, 0] and gradient.abs().sum() == 0
    assert len(again.decode({"logits": logits}, batch)) == 2


@pytest.mark.parametrize(
    ("problem", "labels", "message"),
    [
        ("regression", [1.5, "high"], r"line 2\): 'label' is 'high'\. It must be a number"),
        ("regression", [1.5, "nan"], r"line 2\): 'label' is 'nan'\. It must be a finite number"),
        ("regression", [1.5, ""], r"line 2\): 'label' is empty"),
        ("regression", [1, 1.0], r"all training rows \(2 rows\) have the label 1.0"),
        ("multi_label", ["a", "a||b"], r"line 2\): 'label' is 'a\|\|b'\. It must not hold an empty label"),
        ("multi_label", ["a", "[b"], r"line 2\): 'label' is '\[b'\. It begins with a bracket"),
        (
            "multi_label",
            ["a", [["b"]]],
            r"line 2: 'label' is \[\['b'\]\]\. It must be text, a finite number or a list of them",
        ),
        ("multi_label", ["", ""], r"all training rows \(2 rows\) have the label \(\)"),
        ("single_label", ["a", ["b"]], r"line 2: 'label' is \['b'\]\. It must be text or a finite number"),
    ],
)
def test_cells_that_are_no_answer(tokenizer, tmp_path, problem, labels, message):
    with pytest.raises(DataError, match=message):
        built(SequenceClassificationTask(problem=problem), tokenizer, labels, tmp_path)


def test_a_very_long_text_is_truncated(tokenizer, tmp_path):
    text = ("a b c d " * 12_500)[:-1]
    assert len(text) == 99_999
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for label in "xy"))
    source = SequenceClassificationTask(max_length=64).build_sources(TableData(str(path)), tokenizer, 0)["train"]
    assert batches(source, [])[0].lengths == (64, 64)


def test_evaluated_rows_are_available(tokenizer, tmp_path):
    task = SequenceClassificationTask()
    sources = built(task, tokenizer, ["x", "y"], tmp_path, test=["y"])
    assert [(row.text, row.label) for row in sources["test"].records] == [("a 0", "y")]
    assert sources["train"].records == ()


@pytest.mark.parametrize(
    "settings",
    [{}, {"out_of_scope_label": "oos"}, {"problem": "multi_label"}, {"problem": "regression"}],
    ids=["single_label", "out_of_scope", "multi_label", "regression"],
)
def test_modes_are_those_of_the_metrics(settings):
    problem = SequenceClassificationTask(**settings).problem
    metrics = problem.build_metrics()
    assert list(problem.metric_modes) == list(metrics)
    assert problem.metric_modes == {
        name: "max" if metric.higher_is_better else "min" for name, metric in metrics.items()
    }
