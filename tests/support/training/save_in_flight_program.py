"""Toy run whose last rank ends in step 5, while the checkpoint of step 4 is written. Arguments: `FOLDER raise|die`.

A test runs it by torchrun. Writes wait in the middle, with the shards on disk, until that rank has raised or died.
"""

import os
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch

from framework.callbacks.cadence import Cadence
from framework.checkpoint import save
from framework.distributed.processes.environment import process_info
from framework.distributed.processes.process_group import process_group
from tests.support.training.toy_run import train

CADENCE = Cadence(max_steps=8, log_every_n_steps=1, checkpoint_every_n_steps=2)


class End(pl.Callback):
    """Callback that ends the last rank."""

    def __init__(self, how: str, flag: Path) -> None:
        self.how, self.flag = how, flag

    def on_train_batch_start(self, trainer: pl.Trainer, *unused: object) -> None:
        info = process_info()
        if trainer.global_step == 4 and info.rank == info.world_size - 1:
            # Checks both names, since polling every 10 ms may miss the temporary one.
            while not list((self.flag.parent / "checkpoints").glob("step_00000004*/.metadata")):
                time.sleep(0.01)
            self.flag.touch()
            if self.how == "die":
                os._exit(9)
            raise ValueError("the training failed")


def hold_step_4(folder: Path) -> None:
    """Delays marking the checkpoint of step 4 as complete until the flag file exists."""
    mark_complete = save.mark_complete

    def held(target: Path, *rest: object) -> None:
        while target.name == "step_00000004" and not (folder / "flag").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        mark_complete(target, *rest)  # type: ignore[arg-type]

    gather = save.gather

    def gathered(*arguments: object) -> list[object]:
        if process_info().rank == process_info().world_size - 1 and "die" in sys.argv:
            # The last rank dies before it has reported its files.
            while (folder / "checkpoints" / "step_00000004.tmp" / ".metadata").exists():
                time.sleep(0.01)
        return gather(*arguments)  # type: ignore[arg-type]

    save.mark_complete = held
    save.gather = gathered  # type: ignore[assignment]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_folder = Path(sys.argv[1])
    hold_step_4(run_folder)
    with process_group("fsdp2", "cpu", 60.0):
        train(run_folder, "fsdp2", CADENCE, extra_callbacks=(End(sys.argv[2], run_folder / "flag"),))
