"""Toy task whose loss or gradient is not finite for certain sequences."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.modules.encoder_module import EncoderModule
from tests.support.training.toy_run import ToyTask, build_module


class NanBackward(torch.autograd.Function):
    """Identity function with a NaN gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.nan


class BadSequences(ToyTask):
    """Toy task in which some sequences make the loss, or only the gradient, of their micro-batch not finite."""

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
    return build_module(task=BadSequences(bad_ids, only_backward))
