"""Runs with probes: training stays bit-identical, and the scores are those of the current weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.callbacks.cadence import Cadence
from framework.checkpoint.layout import Weights, newest_complete
from framework.checkpoint.load import read_full_state
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import StepSequences
from framework.distributed.parallel.precision import Precision
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.norm import LayerNorm
from framework.random import key, mix, random_integers
from framework.tasks.pooling import pool_mean
from framework.tasks.probing.linear_fit import softmax_loss
from framework.tasks.probing.probe import Probe
from framework.tasks.sequence_classification.single_label import SingleLabel
from tests.support.processes.workers import WorkerPool
from tests.support.training.tiny_run import rows
from tests.support.training.toy_run import CONFIG, VOCAB, ToyHead, ToyTask, build_module, train

STEPS = 6


class NormedHead(ToyHead):
    """Toy head with a norm, like the head of masked words: FSDP2 gathers all norms together."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.norm = LayerNorm(hidden_size, 1e-5)

    def forward(self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None) -> dict[str, Tensor]:
        return super().forward(self.norm(hidden_states), batch, dropout_keys)


class NormedTask(ToyTask):
    """Toy task with that head."""

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        return NormedHead(config.hidden_size)


def texts(size: int, name: str) -> tuple[list[np.ndarray], list[str]]:
    """Words drawn by hash; the label says whether low words outnumber high ones."""
    drawn = [random_integers(mix(key(name, index), np.arange(3 + index % 9)), VOCAB) for index in range(size)]
    return drawn, ["low" if np.mean(words < VOCAB / 2) > 0.5 else "high" for words in drawn]


def probe() -> Probe:
    problem = SingleLabel()
    problem.learn(("high", "low"), ())
    sources = {}
    for split, size in (("train", 60), ("validation", 40)):
        words, labels = texts(size, split)
        lengths = np.array([len(each) for each in words])
        sources[split] = FlatSource(np.concatenate(words), lengths, problem.targets(labels), {}, max_length=12)
    return Probe(problem, sources, pool_mean, softmax_loss, l2=1.0)


def run(
    folder: str,
    strategy: str = "single",
    probed: bool = True,
    max_steps: int = STEPS,
    precision: str = "fp32",
    ema_decay: float | None = None,
) -> None:
    """Makes a run, or its missing rest: rows at even steps, validation at every third, probes at step 5 and the end."""
    cadence = Cadence(max_steps, 2, validate_every_n_steps=3, checkpoint_every_n_steps=2, probe_every_n_steps=5)
    module = build_module(task=NormedTask(), precision=Precision(precision), ema_decay=ema_decay)
    checkpoint = newest_complete(Path(folder) / "checkpoints")
    probes = {"order": probe()} if probed else {}
    train(Path(folder), strategy, cadence, checkpoint=checkpoint, module=module, probes=probes)


def without_probes(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    stripped = [{name: value for name, value in row.items() if not name.startswith("probe/")} for row in rows]
    return [row for row in stripped if set(row) != {"step"}]


def expected_accuracy(folder: Path, weights: Weights) -> float:
    """Computes the score with scikit-learn on the mean hidden states of each text alone."""
    state = read_full_state(folder / "checkpoints" / f"step_{STEPS:08d}", weights)
    encoder = TransformerEncoder(CONFIG)
    encoder.load_state_dict(
        {name.removeprefix("encoder."): v for name, v in state.items() if name.startswith("encoder.")}
    )
    features, labels = {}, {}
    for split, size in (("train", 60), ("validation", 40)):
        words, labels[split] = texts(size, split)
        source = probe().sources[split]
        features[split] = []
        for index in range(len(words)):
            one = np.array([index])
            batch = source.build(StepSequences(np.zeros(1, dtype=np.int64), one, one), 0)
            with torch.no_grad():
                features[split].append(encoder(batch).double().mean(0).numpy())
    scaler = StandardScaler().fit(features["train"])
    reference = LogisticRegression(C=2.0, tol=1e-8, max_iter=5000)  # two labels: see linear_fit
    reference.fit(scaler.transform(features["train"]), labels["train"])
    return reference.score(scaler.transform(features["validation"]), labels["validation"])


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_score_is_that_of_the_validated_weights(tmp_path: Path, ema_decay: float | None):
    run(str(tmp_path), ema_decay=ema_decay)
    last = rows(tmp_path)[-1]
    assert last["probe/order/accuracy"] == pytest.approx(expected_accuracy(tmp_path, "ema" if ema_decay else "raw"))
    assert 0.55 < last["probe/order/accuracy"] < 1.0


@pytest.mark.parametrize(
    ("strategy", "world_size", "precision"),
    [("single", 1, "fp32"), ("ddp", 2, "bf16"), ("fsdp2", 2, "bf16"), ("tp", 2, "fp32")],
)
def test_training_equals_that_of_a_run_without_probes_bit_for_bit(
    tmp_path: Path, workers: WorkerPool, strategy: str, world_size: int, precision: str
):
    for name, probed in (("with", True), ("without", False)):
        workers.run(run, world_size, str(tmp_path / name), strategy, probed, STEPS, precision, 0.9)
    with_probes, without = rows(tmp_path / "with"), rows(tmp_path / "without")
    assert [row["step"] for row in with_probes if "probe/order/accuracy" in row] == [5, STEPS]
    assert [row["step"] for row in with_probes] == [2, 3, 4, 5, 6]
    names = ("accuracy", "macro_f1", "matthews", "f1")
    assert set(with_probes[3]) == {"step", *(f"probe/order/{name}" for name in names)}
    assert without_probes(with_probes) == without


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path):
    run(str(tmp_path / "whole"))
    (tmp_path / "cut").mkdir()
    run(str(tmp_path / "cut"), max_steps=4)
    # The run of four steps has probed at its end; the longer one does not probe there.
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert "probe/order/accuracy" in json.loads(lines[-1])
    run(str(tmp_path / "cut"))
    ours, theirs = rows(tmp_path / "cut"), rows(tmp_path / "whole")
    assert [row for row in ours if row["step"] > 4] == [row for row in theirs if row["step"] > 4]


def test_two_ranks_have_the_scores_of_one(tmp_path: Path, workers: WorkerPool):
    run(str(tmp_path / "one"))
    workers.run(run, 2, str(tmp_path / "two"), "fsdp2")
    for ours, theirs in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
