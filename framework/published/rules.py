"""How tensors are renamed and regrouped between our names and published ones; each rule works both ways."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Regroup = Callable[[Sequence[Tensor], int], list[Tensor]]


def _unchanged(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    del num_heads
    return list(tensors)


def join_qkv(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    """Query, key and value, each (hidden, ...), to one (3 * hidden, ...) with rows ordered (heads, 3, head_dim)."""
    return [torch.stack([tensor.unflatten(0, (num_heads, -1)) for tensor in tensors], dim=1).flatten(0, 2)]


def split_qkv(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    """The inverse of `join_qkv`."""
    parts = tensors[0].unflatten(0, (num_heads, 3, -1)).unbind(dim=1)
    return [part.flatten(0, 1).contiguous() for part in parts]


def _reorder_qkv(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    """Rows ordered (3, heads, head_dim), as in ModernBERT's Wqkv, to (heads, 3, head_dim)."""
    return join_qkv(tensors[0].chunk(3), num_heads)


def _restore_qkv(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    return [torch.cat(split_qkv(tensors, num_heads))]


def _halves(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    del num_heads
    return [half.contiguous() for half in tensors[0].chunk(2)]


def _joined(tensors: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    del num_heads
    return [torch.cat(list(tensors))]


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


@dataclass(frozen=True)
class Rule:
    """Which of our tensors come from which published ones, and how they are regrouped.

    Attributes:
        ours: Names in our layout.
        theirs: Names in the published layout, without the prefix of the base model.
        to_ours: Regroups published tensors; its second argument is the number of heads.
        to_theirs: The inverse.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: Regroup = _unchanged
    to_theirs: Regroup = _unchanged


def renamed(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
    """Rules for the weight and the bias (where there is one) of one module under another name."""
    return [Rule((f"{ours}.{kind}",), (f"{theirs}.{kind}",)) for kind in _kinds(bias)]


def fused_qkv(ours: str, theirs: tuple[str, str, str], bias: bool) -> list[Rule]:
    """Rules for three published projections that are one of ours."""
    return [
        Rule((f"{ours}.{kind}",), tuple(f"{name}.{kind}" for name in theirs), join_qkv, split_qkv)
        for kind in _kinds(bias)
    ]


def reordered_qkv(ours: str, theirs: str, bias: bool) -> list[Rule]:
    """Rules for one published projection whose rows are ordered (3, heads, head_dim)."""
    return [Rule((f"{ours}.{kind}",), (f"{theirs}.{kind}",), _reorder_qkv, _restore_qkv) for kind in _kinds(bias)]


def split_in_two(first: str, second: str, theirs: str, bias: bool) -> list[Rule]:
    """Rules for one published projection whose first and second half of rows are two of ours."""
    return [
        Rule((f"{first}.{kind}", f"{second}.{kind}"), (f"{theirs}.{kind}",), _halves, _joined) for kind in _kinds(bias)
    ]


def to_ours(rules: Iterable[Rule], tensors: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Applies the rules whose published tensors are all there."""
    found: dict[str, Tensor] = {}
    for rule in rules:
        if all(name in tensors for name in rule.theirs):
            regrouped = rule.to_ours([tensors[name] for name in rule.theirs], num_heads)
            found.update(zip(rule.ours, regrouped, strict=True))
    return found


def to_theirs(rules: Iterable[Rule], tensors: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Applies the rules, whose tensors of ours must all be there, the other way round."""
    found: dict[str, Tensor] = {}
    for rule in rules:
        regrouped = rule.to_theirs([tensors[name] for name in rule.ours], num_heads)
        found.update(zip(rule.theirs, regrouped, strict=True))
    return found
