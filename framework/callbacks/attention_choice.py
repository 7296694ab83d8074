"""Chooses the attention kernel of a run before its first step: the fastest one, or the one of the config."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import math
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from rich.console import Console
from typing_extensions import override

from framework.data.planning.auto_budget import trial_batch
from framework.distributed.reduce import max_over_ranks
from framework.errors import ConfigError
from framework.modules.encoder_module import EncoderModule
from framework.nn.attention_kernel import (
    KERNELS,
    AttentionKernel,
    UnusableKernelError,
    attention_pass,
    device_clock,
    time_kernels,
    use_kernel,
)
from framework.tracking.console import print_line


class AttentionChoice(pl.Callback):
    """Times each installed kernel on a micro-batch of the run and uses the fastest.

    All ranks use the same kernel: the one whose slowest rank is fastest.

    Args:
        kernel: Kernel of the config; "auto" chooses by time.
        console: Console for the line; None: standard output.
    """

    def __init__(self, kernel: AttentionKernel | Literal["auto"], console: Console | None = None) -> None:
        self.kernel = kernel
        self.console = console

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Sets the kernel. Collective: all ranks must call.

        Raises:
            ConfigError: The kernel of the config is not installed.
        """
        if pl_module.precision.compute_dtype == torch.float32:
            return  # fp32 does not use these kernels
        if self.kernel == "auto":
            seconds = torch.tensor(self._time(trainer, pl_module), dtype=torch.float64, device=pl_module.device)
            by_kernel = dict(zip(KERNELS, max_over_ranks(seconds).tolist(), strict=True))
            fastest = min(KERNELS, key=lambda name: by_kernel[name])
            use_kernel(fastest)
            timed = [f"{name} {1e3 * value:.2f} ms" for name, value in by_kernel.items() if math.isfinite(value)]
            if trainer.is_global_zero:
                print_line(f"attention: {fastest} of {', '.join(timed) or 'none'} (pass of all layers)", self.console)
            return
        try:
            use_kernel(self.kernel)
        except UnusableKernelError as error:
            raise ConfigError(
                f"`strategy.attention` is {self.kernel}, which this machine cannot use: {error}. Install its package, "
                "or set `strategy.attention` to auto."
            ) from error

    def _time(self, trainer: pl.Trainer, pl_module: EncoderModule) -> list[float]:
        """Returns the seconds of a pass with each of `KERNELS` in the largest micro-batch of the run."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        plan, config = data.plans["train"], pl_module.model.encoder.config
        batch = trial_batch(plan.source, plan.budgets[-1], data.max_steps, plan.shapes).to(pl_module.device)
        windows = [config.attention_window(layer) for layer in range(config.num_layers)]
        run = attention_pass(batch, config.num_heads, config.head_dim, windows, pl_module.precision.compute_dtype)
        seconds = time_kernels(tuple(KERNELS), run, device_clock(pl_module.device))
        return [seconds[name] for name in KERNELS]
