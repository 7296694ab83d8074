"""Laps and windows, with a clock that the test controls."""

import contextlib
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from framework.callbacks.throughput import Throughput, peak_memory_bytes
from framework.callbacks.timings import Timings


class Clock:
    """Replaces time.perf_counter."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Module:
    """Attributes of the module that Throughput reads."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.runner = SimpleNamespace(num_tokens=500)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_every_second_belongs_to_one_lap(clock: Clock):
    timings = Timings()
    clock.now = 103.0
    timings.lap("train")
    clock.now = 104.5
    timings.lap("checkpoint")
    clock.now = 106.5
    timings.lap("train")
    assert dict(timings.take()) == {"train": 5.0, "checkpoint": 1.5}
    assert dict(timings.take()) == {}


def test_a_span_overlaps_the_laps(clock: Clock):
    timings = Timings()
    clock.now = 101.0
    timings.begin("checkpoint")
    clock.now = 102.0
    timings.lap("train")
    clock.now = 104.0
    assert (timings.running("checkpoint"), timings.longest["checkpoint"]) == (3.0, 0.0)
    ending = threading.Thread(target=timings.end, args=("checkpoint",))
    ending.start()
    ending.join()
    assert timings.running("checkpoint") == 0.0
    timings.lap("train")
    assert dict(timings.take()) == {"train": 4.0, "checkpoint": 3.0}
    timings.begin("checkpoint")
    clock.now = 105.0
    timings.end("checkpoint")
    assert dict(timings.longest) == {"train": 2.0, "checkpoint": 3.0}


def test_an_interruption_is_subtracted_from_its_lap(clock: Clock):
    timings = Timings()
    clock.now = 101.0
    with timings.interruption("stall"):
        clock.now = 105.0
    clock.now = 107.0
    timings.lap("train")
    with contextlib.suppress(KeyboardInterrupt), timings.interruption("stall"):
        clock.now = 107.5
        raise KeyboardInterrupt
    clock.now = 108.0
    timings.lap("train")
    assert dict(timings.longest) == {"train": 3.0, "stall": 4.0}
    assert dict(timings.take()) == {"train": 3.5, "stall": 4.5}


def test_tokens_per_second_exclude_validation_and_checkpoints_but_include_data_waits(clock: Clock):
    module, timings = Module(), Timings()
    throughput = Throughput(timings, count_flops=lambda step: 1200.0, peak_flops=3000.0)
    throughput.load_state_dict({"wall_seconds": 1000.0, "train_seconds": 6.0, "train_tokens": 100})
    throughput.on_train_start(None, module)
    clock.now = 101.0
    throughput.on_train_batch_start(None, module, None, 0)
    clock.now = 104.0
    module.runner.num_tokens = 900
    own_share = SimpleNamespace(micro_batches=[SimpleNamespace(num_tokens=150), SimpleNamespace(num_tokens=50)])
    throughput.on_train_batch_end(None, module, None, own_share, 0)
    throughput.on_validation_start(None, module)
    clock.now = 124.0
    throughput.on_validation_end(None, module)
    clock.now = 125.0
    timings.lap("checkpoint_stall")
    timings.begin("checkpoint")
    clock.now = 127.0
    timings.lap("checkpoint_stall")
    timings.end("checkpoint")
    row = throughput.take_window(module.runner.num_tokens, torch.device("cpu"))
    assert row.pop("perf/memory_bytes") > 0
    assert row == {
        "perf/tokens_per_second": 100.0,
        "perf/step_seconds": 4.0,
        "perf/data_wait_seconds": 1.0,
        "perf/validation_seconds": 20.0,
        "perf/checkpoint_stall_seconds": 3.0,
        "perf/checkpoint_seconds": 2.0,
        "perf/wall_seconds": 1027.0,
        "perf/mfu": 0.2,
    }
    assert throughput.state_dict() == {"wall_seconds": 1027.0, "train_seconds": 10.0, "train_tokens": 500}
    assert throughput.tokens_per_second() == 50.0


def test_peak_memory_grows_with_the_allocated_tensors():
    before = peak_memory_bytes(torch.device("cpu"))
    held = torch.ones(before // 4 + 25_000_000)  # more than the peak so far
    assert peak_memory_bytes(torch.device("cpu")) >= before + 50_000_000
    assert held.sum() > 0
