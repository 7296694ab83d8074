"""LoRA (Hu et al. 2021, arXiv:2106.09685, section 4.1): frozen linear layers with trained low-rank updates.

    y = x W' + b + (alpha / rank) (x A') B'

A is normal and B zero at the start, so training begins at the frozen layer. Weights keep their names. Queries, keys and
values share one weight here but have separate updates. There is no dropout inside the update: the dropout of the layers
acts on the sum. `merge_lora` adds the updates to the weights and returns the state of an ordinary model.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from framework.errors import ConfigError

PARTS = {
    "attention.qkv": ("query", "key", "value"),
    "attention.output": ("output",),
    "feed_forward.gate": ("gate",),
    "feed_forward.up": ("up",),
    "feed_forward.down": ("down",),
}
"""Linear layers of an encoder layer, with the parts of their outputs: the targets of updates."""

TARGETS = tuple(part for parts in PARTS.values() for part in parts)

LORA_PARAMETERS = ("*.lora_a", "*.lora_b")
"""Shell patterns of the names of update parameters."""

_NAME = re.compile(r"(?P<linear>.+)\.updates\.(?P<part>\w+)\.lora_[ab]")


@dataclass(frozen=True)
class LoraSettings:
    """Targets and size of low-rank updates.

    Attributes:
        rank: Rank of the updates (rows of A, columns of B), at least 1.
        alpha: Scale: updates are multiplied by alpha / rank.
        targets: Names from `TARGETS`: "query", "key", "value" and "output" of attention, "gate", "up" and "down" of
            feed-forward.
        train_also: Shell patterns of the names of other trained parameters.
    """

    rank: int
    alpha: float
    targets: Sequence[str]
    train_also: Sequence[str] = ("head.*",)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"`adapter.rank` is {self.rank}. It must be at least 1. A usual value is 8.")
        if not self.alpha > 0:
            raise ConfigError(
                f"`adapter.alpha` is {self.alpha}. It must be greater than 0. A usual value is twice the rank."
            )
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            what = f"has {unknown[0]!r}, which is no linear layer" if unknown else "is empty"
            raise ConfigError(f"`adapter.targets` {what}. Choose some of {', '.join(TARGETS)}.")

    @property
    def scaling(self) -> float:
        """Factor applied to B @ A."""
        return self.alpha / self.rank


class LowRankUpdate(nn.Module):
    """Low-rank update scaling * B A, from (tokens, in) to (tokens, out).

    Attributes:
        lora_a: (rank, in).
        lora_b: (out, rank).
    """

    def __init__(self, in_features: int, out_features: int, rank: int, scaling: float) -> None:
        super().__init__()
        self.scaling = scaling
        self.lora_a = nn.Parameter(torch.zeros(rank, in_features))
        self.lora_b = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, in) to (tokens, out)."""
        return functional.linear(functional.linear(x, self.lora_a), self.lora_b) * self.scaling


class LoraLinear(nn.Linear):
    """Linear layer with updates for some parts of its output.

    Args:
        linear: Linear layer, whose parameters become those of this module.
        parts: Names of the parts of its output, in the order of `fuse_parts`.
        num_heads: Number of attention heads, for `fuse_parts`.
        settings: Settings that select the parts with an update.
    """

    def __init__(self, linear: nn.Linear, parts: Sequence[str], num_heads: int, settings: LoraSettings) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.parts = tuple(parts)
        self.num_heads = num_heads
        out_features = linear.out_features // len(parts)
        self.updates = nn.ModuleDict(
            {
                part: LowRankUpdate(linear.in_features, out_features, settings.rank, settings.scaling)
                for part in parts
                if part in settings.targets
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, in) to (tokens, out)."""
        updates = {part: update(x) for part, update in self.updates.items()}
        zeros = torch.zeros_like(next(iter(updates.values())))
        return super().forward(x) + fuse_parts([updates.get(part, zeros) for part in self.parts], self.num_heads)


def fuse_parts(parts: Sequence[Tensor], num_heads: int) -> Tensor:
    """Joins outputs of several layers, each (tokens, out), in the order (heads, parts, head_dim) of a fused layer."""
    if len(parts) == 1:
        return parts[0]
    return torch.stack([part.unflatten(-1, (num_heads, -1)) for part in parts], dim=-2).flatten(-3)


def split_parts(rows: Tensor, num_parts: int, num_heads: int) -> list[Tensor]:
    """Splits the rows of a fused layer, (out, columns), into those of its parts: the inverse of `fuse_parts`."""
    if num_parts == 1:
        return [rows]
    return [part.flatten(0, 1) for part in rows.unflatten(0, (num_heads, num_parts, -1)).unbind(dim=1)]


def apply_lora(layers: Iterable[nn.Module], num_heads: int, settings: LoraSettings) -> None:
    """Adds updates to the linear layers in place. Call it before anything else is applied to the layers.

    Args:
        layers: Layers of the encoder. New parameters are created on torch's default device.
        num_heads: Number of attention heads.
        settings: Targets and rank of the updates.

    Raises:
        ConfigError: The layers lack a target.
    """
    for layer in layers:
        modules = dict(layer.named_modules())
        for path, parts in PARTS.items():
            targets = [part for part in parts if part in settings.targets]
            if not targets:
                continue
            linear = modules.get(path)
            if not isinstance(linear, nn.Linear):
                raise ConfigError(f"`adapter.targets` has {targets[0]!r}, which this model lacks. Remove it.")
            parent, _, name = path.rpartition(".")
            setattr(modules[parent], name, LoraLinear(linear, parts, num_heads, settings))


def is_update(name: str) -> bool:
    """Returns True if a parameter belongs to an update, by its name."""
    return _NAME.fullmatch(name) is not None


def updates_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns the linear layers with updates by name, each with its updated parts."""
    parts_of: dict[str, dict[str, None]] = {}
    for name in names:
        if match := _NAME.fullmatch(name):
            parts_of.setdefault(match["linear"], {})[match["part"]] = None
    return {linear: tuple(parts) for linear, parts in parts_of.items()}


def factors(state: Mapping[str, Tensor], linear: str, part: str) -> tuple[Tensor, Tensor]:
    """Returns A (rank, in) and B (out of the part, rank) of a part's update, in fp32."""
    prefix = f"{linear}.updates.{part}."
    return state[prefix + "lora_a"].float(), state[prefix + "lora_b"].float()


def in_place_of(linear: str, part: str, rows: Tensor, num_heads: int) -> Tensor:
    """Places the rows of one part at their position in the fused weight, with zeros elsewhere.

    Args:
        linear: Name of the linear layer.
        part: Name of the part.
        rows: (out of the part, columns).
        num_heads: Number of attention heads.

    Returns:
        (out of the linear layer, columns).
    """
    parts = next(parts for path, parts in PARTS.items() if linear.endswith(path))
    zeros = torch.zeros_like(rows)
    return fuse_parts([(rows if each == part else zeros).mT for each in parts], num_heads).mT.contiguous()


def merge_lora(state: Mapping[str, Tensor], num_heads: int, settings: LoraSettings) -> dict[str, Tensor]:
    """Adds all updates to their weights, in fp32.

    Args:
        state: Full tensors by parameter name.
        num_heads: Number of attention heads.
        settings: Settings with which the updates were trained.

    Returns:
        Tensors of the model without updates.
    """
    merged = {name: tensor for name, tensor in state.items() if not is_update(name)}
    for linear, parts in updates_of(state).items():
        weight = merged[f"{linear}.weight"].float()
        for part in parts:
            a, b = factors(state, linear, part)
            weight = weight + in_place_of(linear, part, settings.scaling * (b @ a), num_heads)
        merged[f"{linear}.weight"] = weight
    return merged
