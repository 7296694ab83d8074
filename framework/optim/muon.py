"""Muon: momentum, orthogonalised, for matrices in layers (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

The same update as `torch.optim.Muon` (2.11 to 2.13), with three differences: the Newton-Schulz iteration runs in a
dtype that the caller chooses (torch always takes bf16, which CPUs without bf16 units multiply four times slower than
fp32); matrices of one shape are processed together; and each matrix is orthogonalised by one rank instead of by all.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from framework.optim.matrix_exchange import MatrixExchange
from framework.optim.shards import computing_device, local

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al. 2024). Singular values end between about 0.7 and 1.2."""

LEARNING_RATE_RULES = ("original", "match_rms_adamw")

_EPS = 1e-7


def initial_state(parameter: Tensor) -> dict[str, Tensor]:
    """Returns zero momentum, sharded like the parameter."""
    return {"momentum_buffer": torch.zeros_like(parameter, requires_grad=False)}


def orthogonalize(matrices: Tensor, num_iterations: int) -> Tensor:
    """Brings all singular values near 1 by Newton-Schulz iteration, in the dtype of the input.

    Args:
        matrices: (matrices, rows, columns).
        num_iterations: Number of iterations.

    Returns:
        Tensor of the same shape and dtype.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=_EPS).view(-1, 1, 1).to(x.dtype)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def learning_rate_factor(rule: str, rows: int, columns: int) -> float:
    """Returns the factor that adapts a learning rate to the shape of a matrix.

    Args:
        rule: "original" (Jordan et al.: sqrt(max(1, rows / columns))) or "match_rms_adamw" (Liu et al. 2025, "Muon is
            scalable for LLM training", equation 4: the update's RMS is that of AdamW).
        rows: Output features of the linear layer.
        columns: Input features of the linear layer.
    """
    if rule == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def split_rows(matrix: Tensor, row_parts: tuple[int, int] | None) -> Tensor:
    """Splits a fused weight into its matrices.

    Args:
        matrix: (outer * parts * inner, columns), rows ordered as (outer, parts, inner): for a fused query-key-value
            layer, outer is the number of heads and parts is 3.
        row_parts: (outer, parts); None for a plain matrix.

    Returns:
        (parts, outer * inner, columns).
    """
    if row_parts is None:
        return matrix.unsqueeze(0)
    outer, parts = row_parts
    return matrix.view(outer, parts, -1, matrix.size(-1)).transpose(0, 1).reshape(parts, -1, matrix.size(-1))


def join_rows(matrices: Tensor, row_parts: tuple[int, int] | None) -> Tensor:
    """Undoes `split_rows`: (parts, outer * inner, columns) to (outer * parts * inner, columns)."""
    if row_parts is None:
        return matrices.squeeze(0)
    outer, parts = row_parts
    return matrices.view(parts, outer, -1, matrices.size(-1)).transpose(0, 1).reshape(-1, matrices.size(-1))


def _orthogonal_updates(
    updates: Mapping[int, Tensor], row_parts: Sequence[tuple[int, int] | None], rule: str, num_iterations: int
) -> dict[int, Tensor]:
    """Orthogonalises full updates, matrices of equal shape together, and scales them by shape."""
    pieces: dict[tuple[int, int], list[tuple[int, Tensor]]] = defaultdict(list)
    for index, full in updates.items():
        split = split_rows(full, row_parts[index])
        pieces[split.size(1), split.size(2)].append((index, split))
    results = {}
    for (rows, columns), members in pieces.items():
        stacked = orthogonalize(torch.cat([split for _, split in members]), num_iterations)
        stacked = stacked * learning_rate_factor(rule, rows, columns)
        for (index, _), part in zip(members, stacked.split([split.size(0) for _, split in members]), strict=True):
            results[index] = join_rows(part, row_parts[index])
    return results


def update(groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, dict[str, Tensor]]) -> None:
    """Updates all groups together, so that ranks share the matrices evenly. Collective: all ranks must call.

    Groups may differ in learning rate, weight decay and row parts. Momentum, rule, iterations and dtype come from the
    first group.
    """
    members = [(group, parameter) for group in groups for parameter in group["params"] if parameter.grad is not None]
    if not members:
        return
    first = groups[0]
    directions = []
    for _, parameter in members:
        gradient, momentum = local(parameter.grad), local(state[parameter]["momentum_buffer"])
        momentum.lerp_(gradient, 1.0 - first["momentum"])
        direction = gradient.lerp(momentum, first["momentum"])
        directions.append(direction.to(computing_device(parameter), first["matrix_dtype"]))
    exchange = MatrixExchange([parameter for _, parameter in members])
    row_parts = [group["row_parts"] for group, _ in members]
    owned = _orthogonal_updates(
        exchange.to_owners(directions), row_parts, first["learning_rate_rule"], first["num_iterations"]
    )
    for (group, parameter), direction in zip(members, exchange.from_owners(owned, directions), strict=True):
        weight = local(parameter)
        weight.mul_(1.0 - group["lr"] * group["weight_decay"])
        weight.add_(direction.to(weight), alpha=-group["lr"])
