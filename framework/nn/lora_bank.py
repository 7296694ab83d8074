"""Linear layers with the low-rank updates of several adapters, of which each applies to its own tokens.

The tokens of an adapter are adjacent, so a layer computes its frozen product once for all tokens, and the small
products of each adapter for a slice. Adapters may have other ranks, scales and targets, or no update for a layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from framework.nn.lora import PARTS, LoraSettings, LowRankUpdate, factors, fuse_parts, updates_of


@dataclass
class TokenRanges:
    """Tokens of each adapter in the current micro-batch.

    Attributes:
        adapters: Indices of the adapters in the order of their tokens.
        sizes: Number of tokens of each of them.
    """

    adapters: Sequence[int] = ()
    sizes: Sequence[int] = field(default_factory=list)


class BankedLinear(nn.Linear):
    """Linear layer with updates of several adapters.

    Args:
        linear: Linear layer, whose parameters become those of this module.
        parts: Names of the parts of its output, in the order of `fuse_parts`.
        num_heads: Number of attention heads, for `fuse_parts`.
        updates: For each adapter its updates by part; empty: the adapter does not change this layer.
        ranges: Tokens of the adapters, which the caller sets before each micro-batch.
    """

    def __init__(
        self,
        linear: nn.Linear,
        parts: Sequence[str],
        num_heads: int,
        updates: Iterable[Mapping[str, LowRankUpdate]],
        ranges: TokenRanges,
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.parts = tuple(parts)
        self.num_heads = num_heads
        self.updates = nn.ModuleList([nn.ModuleDict(dict(each)) for each in updates])
        self.ranges = ranges

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, in) to (tokens, out); the tokens are those of `ranges`."""
        pieces = []
        for adapter, own in zip(self.ranges.adapters, x.split(list(self.ranges.sizes)), strict=True):
            updates = {part: update(own) for part, update in self.updates[adapter].items()}  # type: ignore[operator]
            if updates:
                zeros = torch.zeros_like(next(iter(updates.values())))
                pieces.append(fuse_parts([updates.get(part, zeros) for part in self.parts], self.num_heads))
            else:
                pieces.append(own.new_zeros(len(own), self.out_features))
        return super().forward(x) + torch.cat(pieces)


def apply_bank(
    encoder: nn.Module,
    num_heads: int,
    adapters: Sequence[tuple[LoraSettings, Mapping[str, Tensor]]],
    ranges: TokenRanges,
) -> None:
    """Adds the updates of adapters to the linear layers of an encoder, in place.

    Args:
        encoder: Encoder with the frozen weights that all adapters were trained on.
        num_heads: Number of attention heads.
        adapters: Settings of each adapter, and its state under the names of the encoder.
        ranges: Tokens of the adapters, which the caller sets before each micro-batch.
    """
    targets = {linear for _, state in adapters for linear in updates_of(state)}
    modules = dict(encoder.named_modules())
    for name in sorted(targets):
        linear = modules[name]
        assert isinstance(linear, nn.Linear)
        parts = next(parts for path, parts in PARTS.items() if name.endswith(path))
        updates = [_updates(settings, state, name) for settings, state in adapters]
        parent, _, own_name = name.rpartition(".")
        setattr(modules[parent], own_name, BankedLinear(linear, parts, num_heads, updates, ranges))


def _updates(settings: LoraSettings, state: Mapping[str, Tensor], linear: str) -> dict[str, LowRankUpdate]:
    updates = {}
    for part in updates_of(state).get(linear, ()):
        a, b = factors(state, linear, part)
        with torch.device("meta"):
            update = LowRankUpdate(a.shape[1], b.shape[0], a.shape[0], settings.scaling)
        update.lora_a, update.lora_b = (nn.Parameter(each, requires_grad=False) for each in (a, b))
        updates[part] = update
    return updates
