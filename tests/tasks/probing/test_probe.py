"""The linear fit of a probe compared with scikit-learn's, and a probe's settings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from framework.data.examples.table import TableData
from framework.data.planning.collate import pack_sequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.norm import LayerNorm
from framework.tasks.pooling import pool_mean
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.probing.linear_fit import LinearFit, sigmoid_loss, softmax_loss, squared_loss
from framework.tasks.probing.probe import ProbeSettings
from framework.tasks.task import TaskModel

ROWS, HIDDEN = 80, 7


@pytest.fixture
def features() -> np.ndarray:
    """Returns features of different scales; the last one is constant."""
    drawn = np.random.default_rng(0).normal(size=(ROWS, HIDDEN)) * [1, 5, 0.1, 1, 20, 1, 0] + [0, 3, 0, -1, 100, 0, 2]
    return drawn.astype(np.float32)


def standardised(features: np.ndarray) -> np.ndarray:
    return StandardScaler().fit_transform(features.astype(np.float64))


@pytest.mark.parametrize("l2", [0.1, 5.0])
def test_logistic_regression_equals_that_of_scikit_learn(features, l2):
    labels = (features[:, 0] + features[:, 3] > 0).astype(int) + (features[:, 4] > 110)
    ours = LinearFit(torch.tensor(features), torch.tensor(labels), 3, softmax_loss, l2)
    reference = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10000).fit(standardised(features), labels)
    expected = reference.predict_log_proba(standardised(features))
    np.testing.assert_allclose(ours.scores(torch.tensor(features)).log_softmax(-1).numpy(), expected, atol=1e-3)


def test_several_labels_are_independent_logistic_regressions(features):
    labels = np.stack([features[:, 0] > 0, features[:, 1] > 3], axis=1).astype(int)
    ours = LinearFit(torch.tensor(features), torch.tensor(labels), 2, sigmoid_loss, 1.0)
    scores = ours.scores(torch.tensor(features)).numpy()
    for column in range(2):
        reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=10000)
        expected = reference.fit(standardised(features), labels[:, column]).decision_function(standardised(features))
        np.testing.assert_allclose(scores[:, column], expected, atol=1e-3)


@pytest.mark.parametrize("l2", [0.1, 50.0])
def test_linear_regression_equals_that_of_scikit_learn(features, l2):
    values = features[:, 0] * 2 - features[:, 4] + 7
    ours = LinearFit(torch.tensor(features), torch.tensor(values), 1, squared_loss, l2)
    reference = Ridge(alpha=l2).fit(standardised(features), values)
    others = features[::-1] * np.float32(1.5)
    scaled = StandardScaler().fit(features.astype(np.float64)).transform(others.astype(np.float64))
    np.testing.assert_allclose(ours.scores(torch.tensor(others))[:, 0].numpy(), reference.predict(scaled), rtol=1e-4)


def test_a_second_fit_is_bit_identical(features):
    labels = torch.tensor((features[:, 0] > 0).astype(int))
    first, second = (LinearFit(torch.tensor(features), labels, 2, softmax_loss, 1.0) for _ in range(2))
    assert first.weight.equal(second.weight) and first.bias.equal(second.bias)


def test_all_norms_run_in_a_pass_without_the_head():
    """The norms are one group of FSDP2, which is gathered again only after all of them have run."""
    config = EncoderConfig("bert", 20, 8, 1, 2, 8, 16, norm_placement="pre")
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, PretrainingTask(16).build_head(encoder, config))
    ran = []
    norms = [module for module in model.modules() if isinstance(module, LayerNorm)]
    for norm in norms:
        norm.register_forward_hook(lambda module, *_: ran.append(module))
    batch = pack_sequences(np.arange(5), np.array([3, 2]), np.arange(2))
    with torch.no_grad():
        actual = model(batch, pooling=pool_mean)["features"]
        states = encoder(batch)
    torch.testing.assert_close(actual, torch.stack([states[:3].mean(0), states[3:].mean(0)]))
    assert all(norm in ran for norm in norms) and norms[-1] in model.head.modules()


@pytest.mark.parametrize(
    ("settings", "message"), [({"l2": 0.0}, "l2 is 0.0"), ({"pooling": "max"}, "pooling"), ({"max_length": 2}, "max_l")]
)
def test_impossible_settings_are_rejected(settings, message):
    with pytest.raises(ConfigError, match=message):
        ProbeSettings(TableData("x"), **settings)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    training = WordPieceTraining(60)
    training.train(WordCounts(training.count(["some words of a text"])), folder)
    return Tokenizer.from_folder(folder)


def write(folder: Path, labels: list[str]) -> TableData:
    """Splits rows: the first ones train, the others validate."""
    for name, part in (("train", labels[:60]), ("validation", labels[60:])):
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(f"some words,{label}\n" for label in part))
    return TableData(str(folder / "train.csv"), str(folder / "validation.csv"), validation_fraction=0.0)


def fitted(features: np.ndarray) -> tuple[dict[str, torch.Tensor], np.ndarray, np.ndarray]:
    """Returns features by split for a probe, and standardized by the first split for scikit-learn."""
    train, validation = features[:60], features[60:]
    scaler = StandardScaler().fit(train.astype(np.float64))
    given = {"train": torch.tensor(train), "validation": torch.tensor(validation)}
    return given, scaler.transform(train.astype(np.float64)), scaler.transform(validation.astype(np.float64))


def test_a_probe_of_numbers_is_measured_by_correlations(features, tmp_path: Path, tokenizer: Tokenizer):
    values = features[:, 0] + np.random.default_rng(1).normal(size=ROWS)
    settings = ProbeSettings(write(tmp_path, [str(value) for value in values]), "regression", l2=3.0)
    given, train, validation = fitted(features)
    actual = settings.build(tokenizer).scores(given)
    expected = Ridge(alpha=3.0).fit(train, values[:60]).predict(validation)
    assert next(iter(actual)) == "spearman"
    assert actual["spearman"] == pytest.approx(spearmanr(expected, values[60:]).statistic, abs=1e-6)
    assert actual["pearson"] == pytest.approx(pearsonr(expected, values[60:]).statistic, abs=1e-4)


def test_a_probe_of_several_labels_is_measured_by_f1(features, tmp_path: Path, tokenizer: Tokenizer):
    noise = np.random.default_rng(1).normal(size=(ROWS, 2))
    labels = (np.stack([features[:, 0], features[:, 1] / 5], axis=1) + noise > 0).astype(int)
    cells = ["|".join(name for name, has in zip("ab", row, strict=True) if has) for row in labels]
    given, train, validation = fitted(features)
    actual = ProbeSettings(write(tmp_path, cells), "multi_label").build(tokenizer).scores(given)
    expected = np.stack(
        [LogisticRegression(C=1.0, tol=1e-8).fit(train, labels[:60, i]).predict(validation) for i in range(2)], axis=1
    )
    assert next(iter(actual)) == "micro_f1"
    assert actual["micro_f1"] == pytest.approx(f1_score(labels[60:], expected, average="micro"))


def test_a_probe_needs_validation_rows(tmp_path: Path, tokenizer: Tokenizer):
    data = write(tmp_path, ["x", "y"] * 40)
    with pytest.raises(
        ConfigError, match=r"no validation rows\. A probe is evaluated on them\. Set `data\.validation`"
    ):
        ProbeSettings(replace(data, validation=None)).build(tokenizer)
