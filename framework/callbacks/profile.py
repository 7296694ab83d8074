"""Profiles a few training steps of a run with torch's profiler, on any device."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import logging
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from torch.autograd.profiler_util import EventList, FunctionEventAvg
from torch.profiler import ProfilerActivity, profile
from typing_extensions import override

from framework.batch import StepBatch
from framework.modules.encoder_module import EncoderModule
from framework.tracking.console import print_line
from framework.tracking.rank_log import RUN_LOGGER

PROFILE_FOLDER = "profile"
TRACE_FILE = "trace.json.gz"
TABLE_FILE = "operations.txt"
MEMORY_FILE = "memory.pickle"

_SHOWN_OPERATIONS = 10
_TABLE_ROWS = 100
_MEMORY_EVENTS = 200_000
_OWN_WRAPPERS = ("ProfilerStep", "Optimizer.step#")

logger = logging.getLogger(RUN_LOGGER)


class Profile(pl.Callback):
    """Records steps on rank 0 and writes them into the run folder; other ranks record nothing.

    `profile/trace.json.gz` is a trace for ui.perfetto.dev or chrome://tracing, `profile/operations.txt` a table of the
    operations, and on CUDA `profile/memory.pickle` a memory snapshot for pytorch.org/memory_viz. Without this callback
    a run executes no code for it.

    Args:
        run_folder: Run folder.
        first: First step that is recorded, counted from 1.
        last: Last step that is recorded.
        console: Console for the line; None: standard output.
    """

    def __init__(self, run_folder: Path, first: int, last: int, console: Console | None = None) -> None:
        self.folder = run_folder / PROFILE_FOLDER
        self.first = first
        self.last = last
        self.console = console
        self._profiler: profile | None = None
        self._started_after = 0
        self._start = 0.0

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: EncoderModule, batch: StepBatch, batch_idx: int
    ) -> None:
        """Starts the recording before the first of the steps, or after a resume between them."""
        is_due = self.first <= trainer.global_step + 1 <= self.last
        if not is_due or self._profiler is not None or not trainer.is_global_zero:
            return
        on_cuda = pl_module.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        if on_cuda:
            torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)
        self._profiler = profile(activities=activities)
        self._profiler.start()
        self._started_after, self._start = trainer.global_step, time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Writes the recording after the last of the steps."""
        if self._profiler is not None and trainer.global_step >= min(self.last, trainer.max_steps):
            self._finish(trainer.global_step, pl_module.device)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: EncoderModule, stage: str) -> None:
        """Writes the recording of a run that was stopped between the steps."""
        if self._profiler is not None:
            self._finish(trainer.global_step, pl_module.device)

    def _finish(self, step: int, device: torch.device) -> None:
        profiler, self._profiler = self._profiler, None
        assert profiler is not None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds, num_steps = time.perf_counter() - self._start, max(step - self._started_after, 1)
        profiler.stop()
        operations = profiler.key_averages()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self.folder / TRACE_FILE))
            order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
            table = operations.table(sort_by=order, row_limit=_TABLE_ROWS)
            (self.folder / TABLE_FILE).write_text(table, encoding="utf-8")
            if device.type == "cuda":
                torch.cuda.memory._dump_snapshot(str(self.folder / MEMORY_FILE))
        except OSError as error:
            print_line(f"the profile could not be written: {error}", self.console)
        finally:
            if device.type == "cuda":
                torch.cuda.memory._record_memory_history(enabled=None)
        text = (
            f"profile: steps {self._started_after + 1} to {step}, {1e3 * seconds / num_steps:.1f} ms a step while "
            f"recorded; {dearest(operations, device.type)}; written to {self.folder}"
        )
        logger.info(text)
        print_line(text, self.console)


def dearest(operations: EventList, device_type: str) -> str:
    """Returns the ten operations with the most time of their own on a device, and their shares of all operations.

    Args:
        operations: Averages over the calls of each operation.
        device_type: "cuda": time of kernels; else time of the CPU.
    """

    def own_time(operation: FunctionEventAvg) -> float:
        return float(operation.self_device_time_total if device_type == "cuda" else operation.self_cpu_time_total)

    counted: list[Any] = [each for each in operations if not each.key.startswith(_OWN_WRAPPERS)]
    if device_type == "cuda":  # An operation of the CPU has the time of its kernels too.
        counted = [each for each in counted if each.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(map(own_time, counted)) or 1.0
    shown = sorted(counted, key=own_time, reverse=True)[:_SHOWN_OPERATIONS]
    return ", ".join(f"{_short(each.key)} {own_time(each) / total:.1%}" for each in shown)


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."
