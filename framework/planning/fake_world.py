"""Fake ranks and fake tensors: one process stands for rank 0 of any number, and no tensor has memory."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from framework.batch import PackedBatch, StepBatch
from framework.distributed.processes.environment import ProcessInfo


@contextlib.contextmanager
def fake_environment(info: ProcessInfo) -> Iterator[None]:
    """Context in which the environment is that of a process that torchrun started."""
    variables = {
        "RANK": str(info.rank),
        "LOCAL_RANK": str(info.local_rank),
        "WORLD_SIZE": str(info.world_size),
        "LOCAL_WORLD_SIZE": str(info.local_world_size),
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def fake_process_group(info: ProcessInfo) -> Iterator[None]:
    """Context with a process group whose collectives return at once and send nothing.

    Raises:
        RuntimeError: There is a process group already.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # imports the test library of torch

    if dist.is_initialized():
        raise RuntimeError("There is a process group already. Ranks of a plan are fake. Leave the other group first.")
    dist.init_process_group("fake", store=FakeStore(), rank=info.rank, world_size=info.world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def as_fake(step: StepBatch, mode: FakeTensorMode) -> StepBatch:
    """Returns a step whose tensors are fake; numbers on the host stay."""
    return replace(step, micro_batches=tuple(fake_batch(batch, mode) for batch in step.micro_batches))


def fake_batch(batch: PackedBatch, mode: FakeTensorMode) -> PackedBatch:
    """Returns a micro-batch whose tensors are fake."""
    faked: dict[str, Any] = {
        field.name: mode.from_tensor(getattr(batch, field.name))
        for field in fields(batch)
        if isinstance(getattr(batch, field.name), Tensor)
    }
    if batch.decoder_inputs is not None:
        faked["decoder_inputs"] = fake_batch(batch.decoder_inputs, mode)
    faked["targets"] = {name: mode.from_tensor(value) for name, value in batch.targets.items()}
    return replace(batch, **faked)
