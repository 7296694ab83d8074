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
        """Replaces `ModelPasses.backward`."""
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
        """Replaces `ModelPasses.backward`."""

        def sleep(loss: Tensor) -> Tensor:
            while True:
                time.sleep(1)

        _before_backward(self.rank, self.step, sleep)


def _before_backward(rank: int, step: int, change: Callable[[Tensor], Tensor]) -> None:
    """Applies a function to the losses of one rank in one step, before their backward pass."""
    from framework.modules.passes.model_passes import ModelPasses

    backward = ModelPasses.backward

    def changed(passes: ModelPasses, loss: Tensor, is_last: bool) -> None:
        struck = passes.step == step and os.environ["RANK"] == str(rank)
        backward(passes, change(loss) if struck else loss, is_last)

    ModelPasses.backward = changed  # type: ignore[method-assign]
