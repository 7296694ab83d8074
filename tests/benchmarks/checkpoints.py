"""Time that training waits for a checkpoint: `python -m tests.benchmarks.checkpoints [--folder .] [--rounds 5]`.

Saves the state of BERT-base with AdamW (weights and two moments, fp32) in one process, with the callback of a run.
A round makes both kinds of saves of the same state, one after the other. With a synchronous save, training waits until
the checkpoint is complete. With a background save, it waits in the save and, after a step of matrix products beside
the copy, where the update waits for the rest of the copy. Steps are timed alone, beside the copy (and, if the copy ends
before the step, beside the beginning of the write) and beside the write.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from framework.callbacks.cadence import Cadence
from framework.callbacks.checkpointing import Checkpointing
from framework.callbacks.timings import Timings
from framework.checkpoint.retention import Retention
from framework.checkpoint.tensors import checkpoint_tensors
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.optim.parameter_groups import AdamW

_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_SETTLE_SECONDS = 2.0
_NEVER_ENDS = Cadence(max_steps=1_000_000, checkpoint_every_n_steps=1)


def bert_base_module() -> Any:
    """Module interface that a save uses, with random weights and optimizer state."""
    config = EncoderConfig(
        family="bert",
        vocab_size=30_522,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        intermediate_size=3_072,
        max_position_embeddings=512,
    )
    model = TransformerEncoder(config).to(_DEVICE)
    optimizer = AdamW(lr=1e-3).build(model.named_parameters(), {}, torch.float32)
    generator = torch.Generator(_DEVICE).manual_seed(0)
    for tensor in checkpoint_tensors(model, optimizer).values():
        if tensor.is_floating_point():
            tensor.normal_(generator=generator)
    return SimpleNamespace(model=model, optimizer=optimizer, num_tokens=0, loss_scale=None, validation_metrics={})


def wait_for_device() -> None:
    """Waits until a GPU has finished all work."""
    if _DEVICE.type == "cuda":
        torch.cuda.synchronize()


def step_seconds(weight: Tensor, batch: Tensor) -> float:
    """Computes one step's worth of matrix products."""
    began = time.perf_counter()
    for _ in range(8):
        batch @ weight
    wait_for_device()
    return time.perf_counter() - began


class Saves:
    """Callback that saves the module of the benchmark, with its clock."""

    def __init__(self, folder: Path, module: Any, background: bool) -> None:
        self.trainer: Any = SimpleNamespace(global_step=0, callbacks=[], is_global_zero=True)
        self.module = module
        self.callback = Checkpointing(folder, _NEVER_ENDS, Timings(), Retention(keep_last=1), background)

    def begin(self) -> float:
        """Prepares as a run does before its first step; returns the seconds."""
        began = time.perf_counter()
        self.callback.on_train_start(self.trainer, self.module)
        return time.perf_counter() - began

    def save(self) -> float:
        """Saves the next step; returns the seconds until training continues."""
        self.trainer.global_step += 1
        began = time.perf_counter()
        self.callback.save(self.trainer, self.module, waits=False)
        return time.perf_counter() - began

    def wait_before_update(self) -> float:
        """Does the first part of an optimizer update; returns the seconds."""
        began = time.perf_counter()
        self.module.optimizer.before_change()
        wait_for_device()
        return time.perf_counter() - began

    def is_writing(self) -> bool:
        """Returns True once the last save is complete."""
        return self.callback.timings.running("checkpoint") > 0


def measure(synchronous: Saves, background: Saves) -> dict[str, float]:
    """Measures one round: seconds of each part, and of a step alone, beside the copy and beside the write."""
    weight, batch = torch.ones(768, 768, device=_DEVICE), torch.ones(4_096, 768, device=_DEVICE)
    times = {"synchronous": synchronous.save()}
    time.sleep(_SETTLE_SECONDS)
    times["alone"] = statistics.median(step_seconds(weight, batch) for _ in range(20))
    began = time.perf_counter()
    times["save"] = background.save()
    times["first"] = step_seconds(weight, batch)
    times["wait"] = background.wait_before_update()
    beside = []
    while background.is_writing():
        beside.append(step_seconds(weight, batch))
    times["written"] = time.perf_counter() - began
    times["beside"] = statistics.median(beside)
    background.callback.wait(background.trainer)
    time.sleep(_SETTLE_SECONDS)
    return times


def main() -> None:
    """Measures and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk that is measured")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    module = bert_base_module()
    tensors = checkpoint_tensors(module.model, module.optimizer).values()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    ratios = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        synchronous = Saves(Path(name) / "synchronous", module, background=False)
        background = Saves(Path(name) / "background", module, background=True)
        print(f"{num_bytes / 1e9:.2f} GB; first copy, before the first step, {background.begin():.2f} s")
        for _ in range(arguments.rounds):
            times = measure(synchronous, background)
            stall = times["save"] + times["wait"]
            ratios.append(stall / times["synchronous"])
            shown = {name: f"{1000 * seconds:,.1f} ms" for name, seconds in times.items()}
            lost = 1000 * (times["first"] - times["alone"])
            print(
                f"synchronous {times['synchronous']:.2f} s; stall {1000 * stall:.1f} ms ({100 * ratios[-1]:.2f} %): "
                f"save {shown['save']}, wait before the update {shown['wait']}; "
                f"written after {times['written']:.2f} s; a step {shown['alone']} alone, "
                f"{shown['first']} beside the copy ({lost:+,.1f} ms), {shown['beside']} beside the writing"
            )
    print(f"stall / synchronous save: median {100 * statistics.median(ratios):.2f} %, worst {100 * max(ratios):.2f} %")


if __name__ == "__main__":
    main()
