"""A toy task whose loss or gradient is not finite wherever certain sequences are trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.modules.encoder_module import EncoderModule
from tests.support.training.toy_run import ToyTask, build_module


class NanBackward(torch.autograd.Function):
    """The number itself, whose gradient is not one."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.nan


class BadSequences(ToyTask):
    """Some sequences, wherever they are trained on, spoil the loss or only the gradient of their micro-batch."""

    def __init__(self, bad_ids: Sequence[int], only_backward: bool = False) -> None:
        super().__init__()
        self.bad_ids = torch.tensor(bad_ids)
        self.only_backward = only_backward

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        sums = super().loss_sums(outputs, batch)
        if torch.is_grad_enabled() and bool(torch.isin(batch.sequence_ids, self.bad_ids).any()):
            sums["word"] = NanBackward.apply(sums["word"]) if self.only_backward else sums["word"] * torch.nan
        return sums


def bad_module(bad_ids: Sequence[int], only_backward: bool = False) -> EncoderModule:
    module = build_module()
    module.task = BadSequences(bad_ids, only_backward)
    return module
