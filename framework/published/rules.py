"""Rules that rename and regroup tensors between our layout and published ones, in both directions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Regroup = Callable[[Sequence[Tensor], int], list[Tensor]]


def _unchanged(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    return list(tensors)


def join_qkv(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    """Joins query, key and value, each (hidden, ...), to (3 * hidden, ...) with rows ordered (heads, 3, head_dim)."""
    return [torch.stack([tensor.unflatten(0, (num_heads, -1)) for tensor in tensors], dim=1).flatten(0, 2)]


def split_qkv(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    """Splits a fused tensor into query, key and value: the inverse of `join_qkv`."""
    parts = tensors[0].unflatten(0, (num_heads, 3, -1)).unbind(dim=1)
    return [part.flatten(0, 1).contiguous() for part in parts]


def _reorder_qkv(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    """Reorders rows from (3, heads, head_dim), as in ModernBERT's Wqkv, to (heads, 3, head_dim)."""
    return join_qkv(tensors[0].chunk(3), num_heads)


def _restore_qkv(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    return [torch.cat(split_qkv(tensors, num_heads))]


def _halves(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    return [half.contiguous() for half in tensors[0].chunk(2)]


def _joined(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    return [torch.cat(list(tensors))]


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


@dataclass(frozen=True)
class Rule:
    """Conversion between tensors of our layout and tensors of the published layout.

    Attributes:
        ours: Names in our layout.
        theirs: Names in the published layout, without the prefix of the base model.
        to_ours: Function that regroups published tensors. Its second argument is the number of heads.
        to_theirs: Inverse of `to_ours`.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: Regroup = _unchanged
    to_theirs: Regroup = _unchanged


def _repeat_heads(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    """Joins query, key and value. Key and value heads that several queries share are repeated for each of them."""
    size = tensors[0].shape[0] // num_heads
    whole = [
        tensor.unflatten(0, (-1, size)).repeat_interleave(num_heads * size // tensor.shape[0], dim=0).flatten(0, 1)
        for tensor in tensors
    ]
    return join_qkv(whole, num_heads)


def _halves_of_pairs(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorders the channels of each of (heads, 3) parts but the last from (pair, 2) to (2, pair)."""
    parts = tensor.unflatten(0, (num_heads, 3, -1)).clone()
    parts[:, :2] = parts[:, :2].unflatten(2, (-1, 2)).transpose(2, 3).flatten(2, 3)
    return parts.flatten(0, 2)


def _pairs_of_halves(tensor: Tensor, num_heads: int) -> Tensor:
    parts = tensor.unflatten(0, (num_heads, 3, -1)).clone()
    parts[:, :2] = parts[:, :2].unflatten(2, (2, -1)).transpose(2, 3).flatten(2, 3)
    return parts.flatten(0, 2)


def renamed(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
    """Returns rules for the weight and optional bias of one module that has another published name."""
    return [Rule((f"{ours}.{kind}",), (f"{theirs}.{kind}",)) for kind in _kinds(bias)]


def fused_qkv(ours: str, theirs: tuple[str, str, str], bias: bool) -> list[Rule]:
    """Returns rules for three published linear layers that are one fused layer here."""
    return [
        Rule((f"{ours}.{kind}",), tuple(f"{name}.{kind}" for name in theirs), join_qkv, split_qkv)
        for kind in _kinds(bias)
    ]


def grouped_qkv(ours: str, theirs: tuple[str, str, str], bias: bool) -> list[Rule]:
    """Returns rules as `fused_qkv` for published layers whose keys and values may have fewer heads than the queries."""
    return [replace(rule, to_ours=_repeat_heads) for rule in fused_qkv(ours, theirs, bias)]


def interleaved_qkv(ours: str, theirs: str) -> list[Rule]:
    """Returns a rule for a fused weight in our order whose rotary pairs are neighbouring channels (2i, 2i + 1)."""
    return [
        Rule(
            (f"{ours}.weight",),
            (f"{theirs}.weight",),
            lambda tensors, num_heads: [_halves_of_pairs(tensors[0], num_heads)],
            lambda tensors, num_heads: [_pairs_of_halves(tensors[0], num_heads)],
        )
    ]


def reordered_qkv(ours: str, theirs: str, bias: bool) -> list[Rule]:
    """Returns rules for one published linear layer whose rows are ordered (3, heads, head_dim)."""
    return [Rule((f"{ours}.{kind}",), (f"{theirs}.{kind}",), _reorder_qkv, _restore_qkv) for kind in _kinds(bias)]


def split_in_two(first: str, second: str, theirs: str, bias: bool) -> list[Rule]:
    """Returns rules for one published linear layer whose two halves of rows are two layers here."""
    return [
        Rule((f"{first}.{kind}", f"{second}.{kind}"), (f"{theirs}.{kind}",), _halves, _joined) for kind in _kinds(bias)
    ]


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with a prefix, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def to_ours(rules: Iterable[Rule], tensors: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Converts published tensors to our layout. Skips rules for which a published tensor is missing."""
    converted: dict[str, Tensor] = {}
    for rule in rules:
        if all(name in tensors for name in rule.theirs):
            regrouped = rule.to_ours([tensors[name] for name in rule.theirs], num_heads)
            converted.update(zip(rule.ours, regrouped, strict=True))
    return converted


def to_theirs(rules: Iterable[Rule], tensors: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Converts our tensors to the published layout. All tensors that the rules name must exist."""
    converted: dict[str, Tensor] = {}
    for rule in rules:
        regrouped = rule.to_theirs([tensors[name] for name in rule.ours], num_heads)
        converted.update(zip(rule.theirs, regrouped, strict=True))
    return converted
