"""Kernels behind `varlen_attn`, which packed attention uses on CUDA in half precision, and the choice among them.

FlashAttention 2 is part of PyTorch. 3 and 4 are separate packages, `flash_attn_interface` and `flash-attn-4`, which
torch activates for the whole process. cuDNN is not a candidate: torch (2.11 to 2.13) disables it in `varlen_attn`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.attention as torch_attention
from torch import Tensor

from framework.batch import PackedBatch
from framework.nn.attention_backend import attention

AttentionKernel = Literal["flash2", "flash3", "flash4"]

KERNELS: Mapping[AttentionKernel, str | None] = {"flash2": None, "flash3": "FA3", "flash4": "FA4"}
"""Names of the kernels in torch; None: the one that is active by default."""

_TOLERANCE = 2e-2
"""Largest relative difference between the results of two kernels in bf16."""

_WARM_UP, _REPETITIONS = 2, 5


class UnusableKernelError(Exception):
    """The kernel is not installed, cannot train, or computes something else."""


def use_kernel(name: AttentionKernel) -> None:
    """Makes `varlen_attn` use a kernel in this process.

    Raises:
        UnusableKernelError: This torch or this machine does not have the kernel.
    """
    implementation = KERNELS[name]
    try:
        if implementation is not None:
            torch_attention.activate_flash_attention_impl(implementation)
        elif torch_attention.current_flash_attention_impl() is not None:
            torch_attention.restore_flash_attention_impl()
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        raise UnusableKernelError(str(error)) from error


def time_kernels(
    names: Sequence[AttentionKernel], run: Callable[[], Sequence[Tensor]], clock: Callable[[], float]
) -> dict[AttentionKernel, float]:
    """Times forward and backward passes with each kernel. The last kernel stays in use.

    Args:
        names: Kernels. The results of the first one are the reference for the others.
        run: Function that runs a pass with the kernel in use, and returns its results.
        clock: Function that waits for the device and returns the time in seconds.

    Returns:
        Seconds of a pass by kernel; infinity for one that is not installed, fails, or differs from the reference.
    """
    seconds = dict.fromkeys(names, float("inf"))
    expected: Sequence[Tensor] | None = None
    for name in names:
        try:
            use_kernel(name)
            outputs = run()
        except (UnusableKernelError, RuntimeError, NotImplementedError):
            continue
        expected = outputs if expected is None else expected
        if any(_difference(one, other) > _TOLERANCE for one, other in zip(outputs, expected, strict=True)):
            continue
        for _ in range(_WARM_UP):
            run()
        start = clock()
        for _ in range(_REPETITIONS):
            run()
        seconds[name] = (clock() - start) / _REPETITIONS
    return seconds


def attention_pass(
    batch: PackedBatch, num_heads: int, head_dim: int, windows: Sequence[int | None], dtype: torch.dtype
) -> Callable[[], list[Tensor]]:
    """Returns a function that runs forward and backward passes of attention in the shape of a batch.

    Args:
        batch: Micro-batch on the device.
        num_heads: Number of heads of a rank.
        head_dim: Channels of a head.
        windows: Attention window of each layer. Equal layers run once for each of them.
        dtype: Dtype of queries, keys and values.

    Returns:
        Function without arguments that returns output and gradient of each layer.
    """
    generator = torch.Generator(batch.cu_seqlens.device).manual_seed(0)
    shape = (batch.position_ids.shape[0], num_heads, 3, head_dim)
    qkv = torch.randn(shape, generator=generator, device=batch.cu_seqlens.device, dtype=dtype).requires_grad_()

    def run() -> list[Tensor]:
        results = []
        query, key, value = qkv.unbind(2)
        for window in windows:
            out = attention(query, key, value, batch.cu_seqlens, batch.lengths, batch.max_seqlen, window=window)
            results += [out.detach(), *torch.autograd.grad(out, qkv, out.detach())]
        return results

    return run


def device_clock(device: torch.device) -> Callable[[], float]:
    """Returns a clock that waits for the device."""

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def _difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())
