"""Faults that a rank of a test injects into framework code."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class Poison:
    """Object whose pickle runs a shell command if it is loaded without restrictions."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@dataclass(frozen=True)
class NanGradient:
    """Fault that makes the gradient of one rank NaN in one step.

    Attributes:
        rank: Rank of the faulty process.
        step: Number of completed steps before the fault.
    """

    rank: int
    step: int

    def __call__(self) -> None:
        """Replaces `EncoderModule.backward`."""
        _before_backward(self.rank, self.step, lambda loss: loss * float("nan"))


@dataclass(frozen=True)
class Sleep:
    """Fault that makes one rank sleep forever in one step.

    Attributes:
        rank: Rank of the faulty process.
        step: Number of completed steps before the fault.
    """

    rank: int
    step: int

    def __call__(self) -> None:
        """Replaces `EncoderModule.backward`."""

        def sleep(loss: Tensor) -> Tensor:
            while True:
                time.sleep(1)

        _before_backward(self.rank, self.step, sleep)


def _before_backward(rank: int, step: int, change: Callable[[Tensor], Tensor]) -> None:
    """Applies a function to the losses of one rank in one step, before their backward pass."""
    from framework.modules.encoder_module import EncoderModule

    backward = EncoderModule.backward

    def changed(module: EncoderModule, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        batch = module.step_batch
        assert batch is not None
        if batch.step == step and os.environ["RANK"] == str(rank):
            loss = change(loss)
        backward(module, loss, *args, **kwargs)

    EncoderModule.backward = changed  # type: ignore[assignment,method-assign]
