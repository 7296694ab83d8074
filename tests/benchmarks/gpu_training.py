"""One kind of training step for `tests.benchmarks.gpu_step`: the product's module, plan, callbacks and Trainer."""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.callbacks.checkpointing import Checkpointing
from framework.callbacks.error_analysis import Pictures
from framework.callbacks.standard import standard_callbacks
from framework.callbacks.summary import Summary
from framework.checkpoint.retention import Retention
from framework.data.planning.collate import shape_on
from framework.datamodules.datamodule import EncoderDataModule
from framework.distributed.mesh import mesh_shape
from framework.distributed.peak_flops import peak_flops
from framework.distributed.strategy import build_strategy
from framework.models.accounting import training_flops
from framework.models.config import EncoderConfig
from framework.modules.encoder_module import EncoderModule
from framework.modules.passes.captured import CudaGraphs
from framework.modules.trainer import build_trainer
from framework.nn import attention_backend
from tests.benchmarks.gpu_cases import emit
from tests.support.training.traced_graphs import TracedGraphs, varlen_attention
from tests.support.training.workloads import SEED, DrawnSource, Workload, build_task, module_arguments

NUM_LOSSES = 20
"""Steps whose losses are compared; they also warm up, compile and capture."""
PROFILED_STEPS = 3
MAX_STEPS = 100_000


class _MeasuredError(Exception):
    """Ends the run after the last measured step."""


class Watch(pl.Callback):
    """Reports losses of the first steps, then the speed of a window of steps, then a profile, and ends the run."""

    def __init__(self, config: EncoderConfig, device: str, seconds: float) -> None:
        self.config = config
        self.device = device
        self.seconds = seconds
        self.losses: list[Tensor] = []
        self.num_steps = 0
        self.profiler: Any = None
        self.sums = dict.fromkeys(("tokens", "computed", "sequences", "flops", "steps"), 0.0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: StepBatch, batch_idx: int) -> None:
        self.num_steps += 1
        if self.num_steps <= NUM_LOSSES:
            self.losses.append(torch.as_tensor(pl_module.runner.metrics["train/loss"]).clone())
            if self.num_steps == NUM_LOSSES:
                self._start()
        elif self.profiler is None:
            self._count(batch)
            if self.sums["steps"] % 5 == 0 and time.perf_counter() - self.begin > self.seconds:
                self._report_speed()
                self._profile()
        elif self.num_steps == self.profile_end:
            self._report_profile()
            raise _MeasuredError

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _start(self) -> None:
        emit(losses=[float(loss) for loss in self.losses])
        self.compiled = counters["stats"]["unique_graphs"]
        self._wait()
        self.begin = time.perf_counter()

    def _count(self, batch: StepBatch) -> None:
        for micro in batch.micro_batches:
            self.sums["tokens"] += micro.num_tokens
            self.sums["computed"] += len(micro.input_ids)
            self.sums["sequences"] += micro.num_sequences
            lengths, num_predicted = micro.lengths[: micro.num_sequences], micro.counts.get("mlm", 0.0)
            self.sums["flops"] += training_flops(self.config, lengths, num_predicted)
        self.sums["steps"] += 1

    def _report_speed(self) -> None:
        self._wait()
        seconds, sums = time.perf_counter() - self.begin, self.sums
        peak = peak_flops(self.device, 1)
        emit(
            tokens_per_second=sums["tokens"] / seconds,
            sequences_per_second=sums["sequences"] / seconds,
            tokens_per_step=sums["tokens"] / sums["steps"],
            tflops=sums["flops"] / seconds / 1e12,
            mfu=None if peak is None else sums["flops"] / seconds / peak,
            step_ms=seconds / sums["steps"] * 1e3,
            filler=1 - sums["tokens"] / sums["computed"],
            recompiles=counters["stats"]["unique_graphs"] - self.compiled,
            memory_gb=torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else None,
        )

    def _profile(self) -> None:
        self.profile_end = self.num_steps + PROFILED_STEPS
        activity = torch.profiler.ProfilerActivity
        self.profiler = torch.profiler.profile(
            activities=[activity.CUDA] if self.device == "cuda" else [activity.CPU], acc_events=True
        )
        self.profiler.start()
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self.device == "cuda" else []
        if self.events:
            self.events[0].record()

    def _report_profile(self) -> None:
        if self.events:
            self.events[1].record()
        self._wait()
        self.profiler.stop()
        rows = self.profiler.key_averages()
        if self.device != "cuda":
            calls = sum(row.count for row in rows if row.key.startswith("aten::"))
            emit(kernels=calls / PROFILED_STEPS, note="CPU: operators instead of kernels, no GPU time")
            return
        kernels = [row for row in rows if row.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(row.self_device_time_total for row in kernels) / 1e3
        emit(
            gpu_busy=busy / self.events[0].elapsed_time(self.events[1]),
            gpu_ms=busy / PROFILED_STEPS,
            kernels=sum(row.count for row in kernels) / PROFILED_STEPS,
            top={
                row.key[:80]: round(row.self_device_time_total / 1e3 / PROFILED_STEPS, 3)
                for row in sorted(kernels, key=lambda row: -row.self_device_time_total)[:15]
            },
        )


@contextmanager
def _stand_ins(device: str, case: str) -> Iterator[Any]:
    """Context with what stands for CUDA on the CPU; yields the backend that compiles layers."""
    with ExitStack() as stack:
        backend: Any = "inductor" if case.startswith("compiled") else "none"
        if device == "cpu" and case != "eager":
            stack.enter_context(patch.object(attention_backend, "_has_varlen_kernel", lambda x: True))
            stack.enter_context(patch.object(attention_backend, "varlen_attn", varlen_attention))
            # dynamo traces the layers and torch runs what it traced. It refuses to trace within the recorder's mode.
            backend = "eager" if case == "compiled" else "none"
        yield backend


def _counting(base: type[Any]) -> type[Any]:
    """Returns a subclass of a recorder that counts its captures."""

    class Counting(base):
        num_captures = 0

        def __init__(self, device: torch.device) -> None:
            super().__init__(*([device] if device.type == "cuda" else []))

        def capture(self, function: Any) -> Any:
            Counting.num_captures += 1
            return super().capture(function)

    return Counting


def measure_training(case: str, drawn: Workload, device: str, quick: bool) -> None:
    """Runs one case of a training step and reports it."""
    logging.basicConfig(level=logging.INFO)
    recorder = _counting(CudaGraphs if device == "cuda" else TracedGraphs) if "graph" in case else None
    task = build_task(drawn)
    watch = Watch(drawn.encoder, device, 0.5 if quick else 4.0)
    cadence = Cadence(max_steps=MAX_STEPS)
    with _stand_ins(device, case) as backend, tempfile.TemporaryDirectory() as name:
        module = EncoderModule(**module_arguments(drawn, task), compile_backend=backend)
        module.build_graphs = recorder
        data = EncoderDataModule(
            {"train": DrawnSource(drawn, 64 * drawn.sequences)},
            SEED,
            drawn.sequences,
            drawn.micro_batch_tokens,
            MAX_STEPS,
            wraps_epochs=True,
            shape=shape_on(device),
            has_fixed_shapes=case != "eager",
        )
        callbacks = [
            callback
            for callback in standard_callbacks(Path(name), cadence, task, Retention())
            if not isinstance(callback, Checkpointing | Summary | Pictures)
        ]
        strategy = build_strategy("single", mesh_shape("single", 1), 60.0, device)
        trainer = build_trainer(strategy, device, 1, 1, MAX_STEPS, None, [*callbacks, watch])
        with suppress(_MeasuredError):
            trainer.fit(module, datamodule=data)
    if recorder is not None:
        emit(captures=recorder.num_captures)
    if device == "cpu" and case != "eager":
        emit(note="CPU: dense attention, dynamo without inductor and recorded operators stand in for CUDA's kernels")
