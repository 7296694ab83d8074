"""Rules that rename and regroup tensors between our layout and published ones, in both directions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

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


def renamed(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
    """Returns rules for the weight and optional bias of one module that has another published name."""
    return [Rule((f"{ours}.{kind}",), (f"{theirs}.{kind}",)) for kind in _kinds(bias)]


def fused_qkv(ours: str, theirs: tuple[str, str, str], bias: bool) -> list[Rule]:
    """Returns rules for three published linear layers that are one fused layer here."""
    return [
        Rule((f"{ours}.{kind}",), tuple(f"{name}.{kind}" for name in theirs), join_qkv, split_qkv)
        for kind in _kinds(bias)
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
