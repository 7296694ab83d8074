"""Measures the rates of one device: matrix products, memory bandwidth, and the time to start an operator.

A rate is the best of several rounds after a warm-up round, because other work only slows a measurement down.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

WIDTHS = (128, 256, 384, 768, 1024)
"""Widths of encoders whose matrix products are measured."""

_ROUNDS = 5
_SIZES = {"cpu": (2048, 2048, 2**26), "cuda": (8192, 16384, 2**30)}
"""By device: edge of the largest matrices, tokens of a micro-batch, bytes of a copy."""
_HEAD_DIM = 64
_SEQUENCE_TOKENS = 100
_ATTENTION_BATCHES = (2, 4, 8, 16)
"""Heads of one sequence, or of several of the same length."""
_CHAIN = 200


@dataclass(frozen=True)
class ProductRates:
    """Rates of matrix products of one dtype.

    Attributes:
        peak: Operations per second of a product that is large enough.
        start_seconds: Time of a product, or of a batch of them, beside that of its operations.
        shares: Lowest and highest measured rate, as shares of the rate that these two give.
    """

    peak: float
    start_seconds: float
    shares: tuple[float, float]


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Returns the shortest time of an action in seconds, over several rounds."""
    best = math.inf
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def product_rates(dtype: torch.dtype, device: torch.device) -> ProductRates:
    """Measures large products, those of linear layers of encoders, and those of attention in one or more sequences."""
    edge, tokens, _ = _SIZES[device.type]
    shapes = [(1, size, size, size) for size in (edge // 2, edge)]
    for width in WIDTHS:
        shapes += [(1, tokens, width, 3 * width), (1, tokens, 4 * width, width), (1, width, tokens, width)]
    length = min(_SEQUENCE_TOKENS, tokens)
    for batch in _ATTENTION_BATCHES:
        shapes += [(batch, length, _HEAD_DIM, length), (batch, length, length, _HEAD_DIM)]
    seconds = [product_seconds(*shape, dtype, device) for shape in shapes]
    return fitted_rates([2.0 * math.prod(shape) for shape in shapes], seconds)


def product_seconds(batch: int, rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device) -> float:
    """Returns the time of a batch of products of (rows, inner) and (inner, columns)."""
    left = torch.randn(batch, rows, inner, device=device).to(dtype)
    right = torch.randn(batch, columns, inner, device=device).to(dtype)
    if batch == 1:
        left, right = left[0], right[0]
    return seconds_of(lambda: left @ right.transpose(-1, -2), device)


def fitted_rates(flops: Sequence[float], seconds: Sequence[float]) -> ProductRates:
    """Fits the time of products to flops / peak + start_seconds; the relative errors have the least squares.

    Both are those of the product that is fastest by this formula, so that no share is above 1.
    """
    work, measured = np.array(flops), np.array(seconds)
    columns = np.stack([work / measured, 1.0 / measured], axis=1)
    (slope, start), *_ = np.linalg.lstsq(columns, np.ones(len(flops)), rcond=None)
    if start < 0 or slope <= 0:
        slope, start = float(np.mean(measured / work)), 0.0
    shares = (slope * work + start) / measured
    fastest = float(shares.max())
    return ProductRates(fastest / float(slope), float(start) / fastest, (float(shares.min()) / fastest, 1.0))


def copy_rate(device: torch.device) -> float:
    """Returns the bytes per second that a copy reads and writes."""
    source = torch.ones(_SIZES[device.type][2] // 4, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / seconds_of(lambda: target.copy_(source), device)


def operator_shares(rate: float, device: torch.device) -> tuple[float, float]:
    """Returns the lowest and the highest share of the bandwidth that elementwise operators and norms reach, up to 1."""
    tokens = _SIZES[device.type][1]
    x, y = (torch.randn(tokens, 4 * WIDTHS[-2], device=device) for _ in range(2))
    norm = nn.LayerNorm(x.shape[1], device=device)
    operators: list[tuple[Callable[[], Tensor], float]] = [
        (lambda: x + y, 3),
        (lambda: nn.functional.gelu(x), 2),
        (lambda: norm(x), 2),
        (lambda: x.to(torch.bfloat16), 1.5),
    ]
    with torch.no_grad():
        rates = [passes * x.nbytes / seconds_of(operator, device) for operator, passes in operators]
    return min(1.0, min(rates) / rate), min(1.0, max(rates) / rate)


class _Count(TorchDispatchMode):
    """Counts operators."""

    number = 0

    @override
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.number += 1
        return func(*args, **(kwargs or {}))


def operator_seconds(device: torch.device) -> float:
    """Returns the time to run an operator on a few numbers, over forward and backward passes with views."""
    weight, factor = torch.ones(4, device=device, requires_grad=True), torch.ones(4, device=device)

    def chain() -> None:
        value = weight
        for _ in range(_CHAIN):
            value = (value * factor).view(4)
        value.sum().backward()

    with _Count() as count:
        chain()
    return seconds_of(chain, device) / count.number
