"""Names the lines of a training step at which the host waits for the device, or sends it a constant."""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch.utils._python_dispatch import TorchDispatchMode

from framework.optim import combined

REASONS = {
    "aten::_local_scalar_dense": "the host reads a scalar",
    "aten::is_nonzero": "the host reads a scalar",
    "aten::nonzero": "the size of a result depends on values",
    "aten::masked_select": "the size of a result depends on values",
    "aten::_unique2": "the size of a result depends on values",
    "aten::lift_fresh": "a constant of the host becomes a tensor",
}
ALLOWED = {
    "framework/data/": "the loader prepares batches on the host",
    "framework/datamodules/": "the loader prepares batches on the host",
    "framework/nn/attention_cpu.py": "attention of the CPU; CUDA has its own",
    "framework/modules/passes/objective.py in counts": "the counts of a step are an input, copied from pinned memory",
}
ROOT = f"{Path(combined.__file__).parents[2]}/"


class HostWaits(TorchDispatchMode):
    """Mode that counts such operations by reason and by the innermost line of framework/."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.num_operations = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operations += 1
        reason = REASONS.get(operation._schema.name)
        if reason is not None:
            frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(f"{ROOT}framework/")]
            line = _describe(frames[-1]) if frames else "outside of framework"
            if not line.startswith(tuple(ALLOWED)):
                self.found[f"{reason} at {line}"] += 1
        return operation(*args, **(kwargs or {}))


def _describe(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename.removeprefix(ROOT)} in {frame.name}, line {frame.lineno}"


@contextmanager
def refuse_synchronization() -> Iterator[None]:
    """Context in which CUDA raises an error if the host waits for it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def watch_steps(
    monkeypatch: pytest.MonkeyPatch, steps: range, watch: Callable[[], AbstractContextManager[object]]
) -> None:
    """Enters a context during these steps of a run, counted from 0, callbacks included."""
    advance = _TrainingEpochLoop.advance

    def watched(loop: _TrainingEpochLoop, fetcher: Any) -> None:
        with watch() if loop.global_step in steps else nullcontext():
            advance(loop, fetcher)

    monkeypatch.setattr(_TrainingEpochLoop, "advance", watched)
