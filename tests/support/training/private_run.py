"""A private toy run, and a plain loop over single sequences that gives its weights."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.callbacks.cadence import Cadence
from framework.data.planning.auto_budget import trial_batch
from framework.data.planning.plan import SequenceSource, StepSequences
from framework.data.unit_source import UnitSource
from framework.distributed.parallel.activation_checkpoint import ActivationCheckpointing
from framework.distributed.parallel.materialization import materialize
from framework.distributed.parallel.sharding import Sharding
from framework.modules.encoder_module import EncoderModule
from framework.modules.passes.private import PrivateSteps
from framework.nn.dropout import dropout_base, token_keys
from framework.nn.initialization import initial_values
from framework.privacy.guarantee import Guarantee
from framework.privacy.secret import Secret
from tests.support.models.tiny import full_parameters
from tests.support.training.toy_run import CONFIG, SEED, ToySource, ToyTask, build_module, train

SIZE, STEPS, CLIP, SIGMA = 37, 5, 12.0, 0.05
CADENCE = Cadence(max_steps=STEPS, log_every_n_steps=1, validate_every_n_steps=STEPS, checkpoint_every_n_steps=2)
KEY = hashlib.sha256(b"a fixed key").digest()


class PrivateTask(ToyTask):
    """Toy task with a loss for each sequence."""

    wraps_epochs = False
    head_rows = MappingProxyType({"word": "positions", "pair": "sequences"})

    has_units = False

    def build_sources(self, data: Any, tokenizer: Any, seed: int) -> dict[str, SequenceSource]:
        """Returns the toy sources; with units, each unit of training has three sequences, and a step uses two."""
        sources = super().build_sources(data, tokenizer, seed)
        return {**sources, "train": in_units(sources["train"])} if self.has_units else sources

    def sequence_losses(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
        targets = batch.targets
        words, pairs = (
            functional.cross_entropy(
                outputs[name].float(), targets[labels], ignore_index=IGNORE_INDEX, reduction="none"
            )
            for name, labels in (("word", "words"), ("pair", "labels"))
        )
        sequences = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths))
        return pairs.index_add(0, sequences[targets["positions"]], words)


def in_units(source: SequenceSource) -> UnitSource:
    """Joins sequences that are not adjacent."""
    rows = np.arange(len(source))
    return UnitSource(source, rows, rows % (len(source) // 3), 2)


def secret_of(value: bytes) -> Secret:
    secret = Secret()
    secret.set(value)
    return secret


def guarantee(expected_batch: int, size: int = SIZE) -> Guarantee:
    return Guarantee(8.0, 1e-3, "row", CLIP, SIGMA, expected_batch, expected_batch / size, STEPS)


def private_module(expected_batch: int, secret: Secret, has_units: bool = False) -> EncoderModule:
    task = PrivateTask()
    task.has_units = has_units
    module = build_module(task=task)
    module.make_private(PrivateSteps(guarantee(expected_batch), secret))
    return module


class Trial(pl.Callback):
    """Tries a budget before the first step, as `micro_batch_tokens: auto` does."""

    def on_fit_start(self, trainer, pl_module) -> None:
        pl_module.runner.run_trial(trial_batch(trainer.datamodule.plans["train"].source, 60, STEPS, None))


def run(
    folder: str,
    strategy: str = "single",
    budget: int = 20,
    expected_batch: int = 6,
    sharding: Sharding | None = None,
    mode: str = "",
    has_units: bool = False,
    **options: Any,
) -> dict[str, Tensor]:
    """Runs or resumes a private toy run; returns all weights."""
    secret = secret_of(KEY)
    module = private_module(expected_batch, secret, has_units)
    if sharding is not None:
        module.runner.sharding = sharding
    if mode:
        module.activation_checkpointing = ActivationCheckpointing(mode)  # type: ignore[arg-type]
    if strategy == "hsdp":
        # Two hosts, and therefore two copies.
        os.environ |= {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": str(int(os.environ["RANK"]) % 2)}
    callbacks = (Trial(), *options.pop("extra_callbacks", ()))
    train(
        Path(folder), strategy, CADENCE, budget, expected_batch, module=module, secret=secret,
        extra_callbacks=callbacks, **options,
    )  # fmt: skip
    return full_parameters(module.model)


def sampled(step: int, expected_batch: int, size: int = SIZE) -> np.ndarray:
    return np.flatnonzero(secret_of(KEY).uniforms("sampling", step, "", 0, size) < expected_batch / size)


def loop(expected_batch: int, has_units: bool = False) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Trains with one backward pass for each unit; returns the metrics of each step, and the weights."""
    task, secret = PrivateTask(), secret_of(KEY)
    source = in_units(ToySource(SIZE)) if has_units else ToySource(SIZE)
    size = len(source)
    model = build_module(task=task).model
    materialize(model, initial_values(model, CONFIG, SEED), "cpu")
    named = dict(model.named_parameters())
    decayed = [p for name, p in named.items() if not name.endswith(("bias", "norm.weight"))]
    kept = [p for name, p in named.items() if name.endswith(("bias", "norm.weight"))]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6)
    measured = []
    for step in range(STEPS):
        indices, clipped = sampled(step, expected_batch, size), 0
        totals = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        for index in indices:
            one = np.array([index])
            epoch = np.array([step // -(-size // expected_batch)])
            batch = source.build(StepSequences(epoch, one, step * size + one), step)
            optimizer.zero_grad()
            outputs = model(batch, token_keys(dropout_base(SEED, step, 0), batch))
            task.sequence_losses(outputs, batch).sum().backward()
            norm = sum(p.grad.double().square().sum() for p in named.values() if p.grad is not None) ** 0.5
            clipped += bool(norm > CLIP)
            for name, parameter in named.items():
                if parameter.grad is not None:
                    totals[name] += parameter.grad * min(1.0, CLIP / float(norm))
        for name, parameter in named.items():
            noise = secret.normals(step, name, 0, parameter.numel()).view(parameter.shape)
            parameter.grad = ((totals[name] + SIGMA * CLIP * noise) / expected_batch).float()
        norm = torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        optimizer.step()
        share = clipped / max(len(indices), 1)
        measured.append({"train/clipped_share": share, "optim/grad_norm": float(norm)})
    return measured, {name: parameter.detach() for name, parameter in named.items()}
