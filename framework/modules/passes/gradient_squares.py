"""Squared norms of the gradient of each privacy unit, by kind of module, from one backward pass over a micro-batch.

The gradient of a linear layer's weight for one unit is the sum over its rows t of g_t x_t', with the input x_t and the
gradient g_t of the output. Its square is the sum over pairs of rows of (x_t . x_u) (g_t . g_u), so that no gradient of
a weight is formed (Goodfellow 2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679, section 4, "ghost clipping").

A kind of module without a rule in `RULES` cannot be trained with privacy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from framework.modules.passes.row_units import RowUnits, in_parts, with_zero_row
from framework.nn.lora import LoraLinear, LowRankUpdate
from framework.nn.norm import LayerNorm, ResidualNorm, ResidualRMSNorm, RMSNorm
from framework.tasks.pretraining.head import TiedDecoder
from framework.tasks.sequence_classification.head import Classifier

_MOST_ELEMENTS = 1 << 24
"""Largest number of elements of a temporary tensor."""


@dataclass(frozen=True)
class Kept:
    """Values that a module's forward pass leaves for its squares.

    Attributes:
        tensors: Tensors whose gradients the squares need.
        squares: Function from these gradients and the units of the rows to (units,) fp64 squares.
        gradients: Function from these gradients to the gradient of each trained parameter of the module.
    """

    tensors: Sequence[Tensor]
    squares: Callable[[Sequence[Tensor], RowUnits], Tensor]
    gradients: Callable[[Sequence[Tensor]], list[tuple[Tensor, Tensor]]]


def outer_sum(gradient: Tensor, x: Tensor) -> Tensor:
    """Returns the gradient (out, in) of a linear layer's weight, from the gradient (rows, out) and input (rows, in)."""
    return gradient.mT @ x.to(gradient.dtype)


def linear_squares(x: Tensor, gradient: Tensor, units: RowUnits) -> Tensor:
    """Returns the squared norm of the sum of gradient_t x_t' over the rows of each unit.

    Args:
        x: (rows, in), rounded to the dtype of the gradient, as in the matrix product of the weight's gradient.
        gradient: (rows, out).
        units: Units of the rows.

    Returns:
        (units,) fp64.
    """
    x = x.to(gradient.dtype)
    if units.has_one_row_each:
        return (x.float().square().sum(1) * gradient.float().square().sum(1)).double()
    x, gradient = with_zero_row(x), with_zero_row(gradient)
    result = x.new_zeros(units.num_units, dtype=torch.float64)
    num_in, num_out = x.shape[1], gradient.shape[1]
    for bucket in units.buckets:
        width = bucket.rows.shape[1]
        # Multiplications for one unit: width^2 (in + out) by pairs of rows, width in out by the gradient itself.
        by_pairs = width * (num_in + num_out) < num_in * num_out
        for part in in_parts(
            bucket, max(width * (num_in + num_out), num_in * num_out * (not by_pairs)), _MOST_ELEMENTS
        ):
            own_x, own_gradient = x[part.rows], gradient[part.rows]
            if by_pairs:
                products = torch.bmm(own_x, own_x.mT).mul_(torch.bmm(own_gradient, own_gradient.mT))
                squares = products.sum((1, 2), dtype=torch.float64)
            else:
                squares = torch.bmm(own_gradient.mT, own_x).square_().sum((1, 2), dtype=torch.float64)
            result[part.units] = squares
    return result.clamp_(min=0)


def vector_squares(rows: Tensor, units: RowUnits) -> Tensor:
    """Returns the squared norm of the sum of the rows (rows, channels) of each unit: (units,) fp64."""
    return units.sums(rows.float()).double().square().sum(1)


def table_squares(ids: Tensor, gradient: Tensor, units: RowUnits, num_rows: int) -> Tensor:
    """Returns the squared norm of the gradient of a table of embeddings for each unit.

    Gradients of equal ids within a unit are added first, because they belong to one row of the table.

    Args:
        ids: (rows,) int64 looked-up row of the table.
        gradient: (rows, hidden).
        units: Units of the rows.
        num_rows: Rows of the table.

    Returns:
        (units,) fp64.
    """
    pairs, inverse = torch.unique(units.index * num_rows + ids, return_inverse=True)
    sums = gradient.new_zeros(len(pairs), gradient.shape[1], dtype=torch.float32).index_add_(
        0, inverse, gradient.float()
    )
    squares = sums.double().square().sum(1)
    return squares.new_zeros(units.num_units).index_add_(0, pairs // num_rows, squares)


def shared_table_products(
    decoder: tuple[Tensor, Tensor, RowUnits], ids: Tensor, gradient: Tensor, tokens: RowUnits
) -> Tensor:
    """Returns the inner product of the two gradients of a table that is both looked up and used as a decoder.

    Args:
        decoder: Input (targets, hidden) and gradient of the logits (targets, vocab) of the decoder, with the units of
            the targets.
        ids: (tokens,) looked-up ids.
        gradient: (tokens, hidden) gradient of the embeddings.
        tokens: Units of the tokens.

    Returns:
        (units,) fp64.
    """
    x, logit_gradient, targets = decoder
    num_targets = len(x)
    x, gradient = with_zero_row(x.to(logit_gradient.dtype)), with_zero_row(gradient)
    result = x.new_zeros(tokens.num_units, dtype=torch.float64)
    for bucket in tokens.buckets:
        target_rows = targets.rows_of(bucket.units)
        if not target_rows.shape[1]:
            continue
        products = torch.bmm(x[target_rows], gradient[bucket.rows].mT)
        # Padded places have a product of zero, so any element of the logits' gradient can stand for them.
        own_ids = torch.cat([ids, ids.new_zeros(1)])[bucket.rows]
        own_targets = target_rows.clamp(max=num_targets - 1)
        scores = logit_gradient[own_targets[:, :, None], own_ids[:, None, :]].float()
        result[bucket.units] = products.mul_(scores).sum((1, 2), dtype=torch.float64)
    return result


def _linear(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> Kept:
    """Keeps the input of a linear layer."""
    assert isinstance(module, nn.Linear | TiedDecoder)
    x = inputs[0].detach()
    has_weight = module.weight.requires_grad
    bias = module.bias if module.bias is not None and module.bias.requires_grad else None

    def squares(gradients: Sequence[Tensor], units: RowUnits) -> Tensor:
        (gradient,) = gradients
        total = torch.zeros(units.num_units, dtype=torch.float64, device=gradient.device)
        if has_weight:
            total += linear_squares(x, gradient, units)
        if bias is not None:
            total += vector_squares(gradient, units)
        return total

    def parameter_gradients(gradients: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        (gradient,) = gradients
        weight: list[tuple[Tensor, Tensor]] = [(module.weight, outer_sum(gradient, x))] if has_weight else []
        return weight + ([] if bias is None else [(bias, gradient.float().sum(0))])

    return Kept((output,), squares, parameter_gradients)


def _low_rank(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> Kept:
    """Keeps the input of a low-rank update, the input of B, and B, which may be sharded after the forward pass."""
    assert isinstance(module, LowRankUpdate)
    x, scaling = inputs[0].detach(), module.scaling
    with torch.no_grad():
        inner = functional.linear(x, module.lora_a)
        lora_b = module.lora_b.detach().clone()

    def parts(gradient: Tensor) -> tuple[Tensor, Tensor]:
        scaled = gradient * scaling
        return scaled, scaled @ lora_b.to(scaled.dtype)

    def squares(gradients: Sequence[Tensor], units: RowUnits) -> Tensor:
        gradient, inner_gradient = parts(gradients[0])
        return linear_squares(x, inner_gradient, units) + linear_squares(inner, gradient, units)

    def parameter_gradients(gradients: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        gradient, inner_gradient = parts(gradients[0])
        return [(module.lora_a, outer_sum(inner_gradient, x)), (module.lora_b, outer_sum(gradient, inner))]

    return Kept((output,), squares, parameter_gradients)


def _norm(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> Kept:
    """Keeps the input of a norm."""
    assert isinstance(module, LayerNorm)
    return _kept_norm(module, inputs[0].detach(), (output,))


def _residual_norm(module: nn.Module, inputs: Sequence[Any], output: Sequence[Tensor]) -> Kept:
    """Keeps the sum that a `ResidualNorm` normalises, which is one of its results or computed again."""
    assert isinstance(module, ResidualNorm)
    branch, residual, dropout, dropout_keys, names = inputs
    results = dict(zip(names, output, strict=True))
    total = results.get("sum")
    if total is None:
        with torch.no_grad():
            total = dropout(branch, dropout_keys, residual=residual)
    normed = {id(tensor): tensor for name, tensor in results.items() if name != "sum"}
    return _kept_norm(module, total.detach(), tuple(normed.values()))


def _kept_norm(module: LayerNorm, x: Tensor, outputs: tuple[Tensor, ...]) -> Kept:
    has_weight = module.weight.requires_grad
    bias = module.bias if module.bias is not None and module.bias.requires_grad else None

    def parts(gradients: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Returns the gradient of each row for each trained parameter."""
        gradient = (
            gradients[0].float() if len(gradients) == 1 else torch.stack([each.float() for each in gradients]).sum(0)
        )
        normed: list[tuple[Tensor, Tensor]] = [(module.weight, gradient * module.normalize(x))]
        return normed * has_weight + ([] if bias is None else [(bias, gradient)])

    def squares(gradients: Sequence[Tensor], units: RowUnits) -> Tensor:
        return torch.stack([vector_squares(rows, units) for _, rows in parts(gradients)]).sum(0)

    def parameter_gradients(gradients: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(parameter, rows.sum(0)) for parameter, rows in parts(gradients)]

    return Kept(outputs, squares, parameter_gradients)


Rule = Callable[[nn.Module, Sequence[Any], Any], Kept]
"""Function from a module, the arguments of its forward pass, and its output."""

RULES: Mapping[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    LoraLinear: _linear,
    Classifier: _linear,
    TiedDecoder: _linear,
    LowRankUpdate: _low_rank,
    LayerNorm: _norm,
    ResidualNorm: _residual_norm,
    RMSNorm: _norm,
    ResidualRMSNorm: _residual_norm,
}
"""Rule of each kind of module, for its own parameters. Subclasses need a rule of their own. The tape has the rule of
`TokenEmbeddings`, whose tables share one gradient."""
