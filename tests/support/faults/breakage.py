"""Broken parts that a rank of a test puts in the place of the product's own."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class Poison:
    """A pickle that runs a shell command when it is loaded without care."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@dataclass(frozen=True)
class NanGradient:
    """Makes the gradient of one rank NaN in one step.

    Attributes:
        rank: Of the process.
        step: Completed steps before it.
    """

    rank: int
    step: int

    def __call__(self) -> None:
        """Replaces the module's backward."""
        _before_backward(self.rank, self.step, lambda loss: loss * float("nan"))


@dataclass(frozen=True)
class Sleep:
    """Lets one rank sleep for ever in one step.

    Attributes:
        rank: Of the process.
        step: Completed steps before it.
    """

    rank: int
    step: int

    def __call__(self) -> None:
        """Replaces the module's backward."""

        def sleep(loss: Tensor) -> Tensor:
            while True:
                time.sleep(1)

        _before_backward(self.rank, self.step, sleep)


def _before_backward(rank: int, step: int, change: Callable[[Tensor], Tensor]) -> None:
    """Lets the losses of one rank in one step go through a function before their backward pass."""
    from framework.modules.encoder_module import EncoderModule

    backward = EncoderModule.backward

    def changed(module: EncoderModule, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        batch = module.step_batch
        assert batch is not None
        if batch.step == step and os.environ["RANK"] == str(rank):
            loss = change(loss)
        backward(module, loss, *args, **kwargs)

    EncoderModule.backward = changed  # type: ignore[assignment,method-assign]
