"""Trains the tiny model by Lightning's Trainer under a strategy."""

import os
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from framework.distributed.mesh import mesh_shape
from framework.distributed.parallel.gradient_norm import clip_gradients
from framework.distributed.processes.environment import process_info
from framework.distributed.strategy import build_strategy
from tests.support.models.tiny import Tiny, TinyModel, build

NUM_STEPS = 4
Curve = list[tuple[float, float]]


class TinyModule(pl.LightningModule):
    """Lightning module that runs the tiny loop by manual optimization and validates every second step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tiny: Tiny | None = None
        self.model: TinyModel | None = None
        self.curve: Curve = []
        self.validated_at: list[int] = []

    def configure_model(self) -> None:
        if self.tiny is None:
            strategy: Any = self.trainer.strategy
            self.tiny = build(strategy.name)
            self.tiny.mesh = strategy.mesh
            self.model = self.tiny.model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.tiny is not None
        return self.tiny.optimizer

    def training_step(self, step: int, batch_idx: int) -> None:
        assert self.tiny is not None and step == self.global_step
        loss = self.tiny.gradients(step)
        norm = clip_gradients(self.tiny.model.parameters(), 1.0)
        optimizer: Any = self.optimizers()
        optimizer.step()
        optimizer.zero_grad()
        self.curve.append((loss.item(), norm.item()))

    def validation_step(self, step: int, batch_idx: int) -> None:
        assert self.tiny is not None
        self.tiny.evaluate(step)
        self.validated_at.append(self.global_step)

    def train_dataloader(self) -> Any:
        return DataLoader(range(100), batch_size=None)

    def val_dataloader(self) -> Any:
        return DataLoader(range(1), batch_size=None)


def run_trainer(strategy: str) -> tuple[Curve, list[int], int]:
    info = process_info()
    built = build_strategy(strategy, mesh_shape(strategy, info.world_size), 60.0)
    trainer = pl.Trainer(
        strategy=built,
        accelerator="cpu",
        devices=info.local_world_size,
        num_nodes=info.num_nodes,
        max_steps=NUM_STEPS,
        max_epochs=-1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    module = TinyModule()
    trainer.fit(module)
    assert trainer.global_rank == int(os.environ.get("RANK", "0"))
    return module.curve, module.validated_at, trainer.global_step
