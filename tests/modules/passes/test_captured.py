"""Captured steps have the losses and gradients of ordinary steps, also for batches and steps after the capture."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.data.planning.collate import FixedShape, Target, pack_sequences
from framework.distributed.parallel.activation_checkpoint import (
    ActivationCheckpointing,
    apply_activation_checkpointing,
)
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.modules.passes.captured import CapturedFunction, CapturedSteps
from framework.modules.passes.one_pass import OnePass
from framework.modules.passes.static_batch import StaticBatch, form_of, tensors_of
from framework.modules.passes.sum_count import SumCountSteps
from framework.nn import attention_backend
from framework.optim import combined
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.task import TaskModel
from tests.support.training.small_steps import (
    CONFIGS,
    build_model,
    classification,
    micro_batch,
    passes_of,
    pretraining,
    run_step,
)
from tests.support.training.toy_run import build_module, train
from tests.support.training.traced_graphs import TracedGraphs, varlen_attention


@pytest.fixture(autouse=True)
def attention_without_lengths(monkeypatch):
    monkeypatch.setattr(attention_backend, "_has_varlen_kernel", lambda x: True)
    monkeypatch.setattr(attention_backend, "varlen_attn", varlen_attention)


@pytest.mark.parametrize("build_task", [pretraining, classification])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_step_captured_once_is_right_for_later_batches_and_steps(family, build_task):
    task = build_task(CONFIGS[family])
    model = build_model(task, CONFIGS[family])
    ordinary = SumCountSteps(task, OnePass())
    graphs = TracedGraphs()
    captured = CapturedSteps(ordinary, graphs)
    for number in range(4):
        step = StepBatch(number, 0, (micro_batch(task, 2 * number), micro_batch(task, 2 * number + 1)))
        expected = run_step(ordinary, model, task, step)
        for ours, theirs in zip(run_step(captured, model, task, step), expected, strict=True):
            assert torch.equal(ours, theirs)
    assert (len(graphs.tapes), graphs.num_replays) == (1, 5)  # the first of them is compared


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_layers_that_compute_their_activations_again_are_captured_too(mode):
    task = classification(CONFIGS["bert"])
    model = build_model(task, CONFIGS["bert"])
    ordinary, graphs = SumCountSteps(task, OnePass()), TracedGraphs()
    steps = [StepBatch(number, 0, (micro_batch(task, number),)) for number in range(5)]
    expected = [run_step(ordinary, model, task, step) for step in steps]
    apply_activation_checkpointing(model.encoder.layers, ActivationCheckpointing(mode))
    captured = CapturedSteps(ordinary, graphs)
    for step, values in zip(steps, expected, strict=True):
        assert all(map(torch.equal, run_step(captured, model, task, step), values))
    assert graphs.num_replays == 2


def test_each_shape_has_its_own_graph():
    task = classification(CONFIGS["bert"])
    model = build_model(task, CONFIGS["bert"])
    ordinary, graphs = SumCountSteps(task, OnePass()), TracedGraphs()
    captured = CapturedSteps(ordinary, graphs)
    small = FixedShape.around(48, 8, None, 24)
    for number in range(5):
        short = micro_batch(task, 9)
        short = pack_sequences(
            np.arange(20) + number, np.array([12, 8]), np.array([number, 7]), None,
            {"labels": Target(np.array([0, 1]), "sequences")}, {"classification": 2.0}, small,
        )  # fmt: skip
        step = StepBatch(number, 0, (micro_batch(task, number), short))
        expected = run_step(ordinary, model, task, step)
        assert all(map(torch.equal, run_step(captured, model, task, step), expected))
    assert (len(graphs.tapes), graphs.num_replays) == (2, 4)


def test_a_static_batch_has_the_tensors_but_no_numbers_of_the_host():
    task = pretraining(CONFIGS["bert"])
    first, second = micro_batch(task, 1), micro_batch(task, 2)
    assert form_of(first) == form_of(second) and first.lengths != second.lengths
    static = StaticBatch(first, torch.device("cpu"))
    addresses = {name: tensor.data_ptr() for name, tensor in tensors_of(static.batch).items()}
    for batch in (first, second):
        static.write(batch)
        for name, tensor in tensors_of(batch).items():
            ours = tensors_of(static.batch)[name]
            assert torch.equal(ours, tensor) and ours.dtype == tensor.dtype and ours.data_ptr() == addresses[name]
    assert static.batch.counts == {} and len(set(static.batch.lengths)) == 1
    assert form_of(replace(first, max_seqlen=25)) != form_of(first)


def test_a_function_that_cannot_be_captured_runs_on_with_one_line(caplog):
    values = torch.arange(3.0)
    runs = []

    def function() -> None:
        runs.append(float(values.sum()))

    run = CapturedFunction("the sum", function, TracedGraphs())
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            run()
    assert runs == [3.0] * 5
    assert [record.getMessage() for record in caplog.records] == [
        "the sum is not captured as a CUDA graph and runs without one: aten::_local_scalar_dense waits for the device, "
        "which a capture does not permit"
    ]


def test_a_graph_that_gives_other_results_than_its_function_is_dropped(caplog):
    """A number of the host is a constant of the graph. Four calls with the same number would not show it."""
    total, calls = torch.zeros(2), []

    def function() -> Tensor:
        total.add_(len(calls))
        return torch.ones(1) * len(calls)

    run = CapturedFunction("the passes", function, TracedGraphs(), total)
    results = []
    for _ in range(6):
        calls.append("next")
        results.append(run().item())
    assert results == [1, 2, 3, 4, 5, 6] and total.tolist() == [21, 21]
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert message.startswith("the passes runs without its CUDA graph, whose results differ by 0.25 of their norm.")


def test_a_step_that_is_not_finite_does_not_drop_a_graph(caplog):
    total, values, graphs = torch.zeros(1), torch.ones(1), TracedGraphs()

    def function() -> Tensor:
        total.add_(values)
        return values * 2

    run = CapturedFunction("the passes", function, graphs, total)
    for value in (1.0, 1.0, 1.0, float("nan"), 2.0, 3.0):
        values.fill_(value)
        total.nan_to_num_(0.0)
        result = run()
    assert (result.item(), total.item(), graphs.num_replays) == (6.0, 5.0, 3)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_ddp_rank(folder: str, is_captured: bool) -> None:
    with patch.multiple(attention_backend, _has_varlen_kernel=lambda x: True, varlen_attn=varlen_attention):
        run_toy(Path(folder), is_captured, strategy="ddp")


def run_toy(
    folder: Path, is_captured: bool, ema_decay: float | None = 0.9, **options: object
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    module = build_module(ema_decay=ema_decay)
    if is_captured:
        module.build_graphs = lambda device: TracedGraphs()
    cadence = Cadence(max_steps=9, log_every_n_steps=1, validate_every_n_steps=4, checkpoint_every_n_steps=3)
    train(folder, module=module, cadence=cadence, budget=40, has_fixed_shapes=True, **options)
    return rows_of(folder), module.model.state_dict()


def test_a_run_writes_the_same_rows_and_weights(tmp_path: Path):
    """Validations swap averaged weights in and out between graphs; a resumed run captures anew."""
    rows, weights = run_toy(tmp_path / "ordinary", False)
    ours, our_weights = run_toy(tmp_path / "captured", True)
    assert ours == rows
    assert all(torch.equal(our_weights[name], value) for name, value in weights.items())
    half = tmp_path / "captured" / "checkpoints" / "step_00000006"
    rest, rest_weights = run_toy(tmp_path / "rest", True, checkpoint=half)
    assert rest == [row for row in rows if row["step"] > 6]
    assert all(torch.equal(rest_weights[name], value) for name, value in weights.items())


def test_the_update_is_captured_where_the_device_decides_about_it(tmp_path: Path, monkeypatch):
    """Learning rates change in each step."""
    monkeypatch.setattr(combined, "HOLDING_DEVICES", ("cpu",))
    rows, weights = run_toy(tmp_path / "ordinary", False, ema_decay=None)
    ours, our_weights = run_toy(tmp_path / "captured", True, ema_decay=None)
    assert ours == rows and len({row["optim/lr"] for row in rows}) == 9
    assert all(torch.equal(our_weights[name], value) for name, value in weights.items())


def test_ranks_sum_the_gradients_of_their_graphs(tmp_path: Path, workers):
    for name, is_captured in {"ordinary": False, "captured": True}.items():
        workers.run(run_ddp_rank, 2, str(tmp_path / name), is_captured)
    ours, theirs = rows_of(tmp_path / "captured"), rows_of(tmp_path / "ordinary")
    assert len(ours) == len(theirs) == 9
    for own, other in zip(ours, theirs, strict=True):
        assert own == pytest.approx(other, rel=1e-5)


def test_a_step_in_the_shapes_of_bert_base_reads_nothing_on_the_host():
    """Tensors without memory have the shapes of a run; reading one of their values is an error."""
    config = EncoderConfig(
        family="bert", vocab_size=30522, hidden_size=768, num_layers=2, num_heads=12, intermediate_size=3072,
        max_position_embeddings=512,
    )  # fmt: skip
    task = PretrainingTask(512, nsp=True)
    lengths = np.full(32, 512)
    tokens = int(lengths.sum())
    positions = np.arange(0, tokens, 7)
    batch = pack_sequences(
        np.zeros(tokens, dtype=np.int64), lengths, np.arange(32), None,
        {
            "mlm_positions": Target(positions, "targets", 0),
            "mlm_labels": Target(positions % 100, "targets"),
            "nsp_labels": Target(np.zeros(32, dtype=np.int64), "sequences"),
        },
        {"mlm": float(len(positions)), "nsp": 32.0},
        FixedShape.around(tokens, 40, len(positions) + 40, 512),
    )  # fmt: skip
    steps = CapturedSteps(SumCountSteps(task, OnePass()), TracedGraphs())
    with FakeTensorMode(allow_non_fake_inputs=True):
        encoder = TransformerEncoder(config)
        model = TaskModel(encoder, task.build_head(encoder, config))
        sums, own = steps.run(
            passes_of(model, task, 0), StepBatch(0, 0, (batch, batch)), torch.tensor([1.0, 1.0]).double()
        )
    assert sums.shape == (2,) and own.shape == (2, 2)
    assert model.head.mlm.decoder.weight.grad.shape == (30522, 768)
