"""Attention with terms that are added to the scores by head and relative position, over packed sequences.

A module computes an `AttentionBias` once for each batch, and all layers use it. Sequences of like length are computed
together, each padded to the next multiple of 16. The scores of a group are kept for the backward pass, so memory grows
with the square of the length.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from framework.nn.norm import LayerNorm

_PADDING_STEP = 16


@dataclass(frozen=True)
class _Group:
    """Sequences that are computed together. Each is padded to the same length with copies of its last token.

    Attributes:
        members: Indices of the sequences in the batch.
        length: Padded length of each sequence.
        rows: (members * length,) rows of the packed tensor.
        padding: (members, 1, 1, length) True for keys that are padding.
        shared: (heads, length, length) fp32, added to the scores of every sequence; None: nothing is added.
        columns: (length, length) int64, row of `AttentionBias.positions` for each query (row) and key (column); None
            without positions.
    """

    members: tuple[int, ...]
    length: int
    rows: Tensor
    padding: Tensor
    shared: Tensor | None = None
    columns: Tensor | None = None

    def take(self, packed: Tensor) -> Tensor:
        """Returns (3, members, heads, length, head_dim) of (tokens, heads, 3, head_dim)."""
        rows = packed.index_select(0, self.rows)
        return rows.unflatten(0, (len(self.members), self.length)).permute(3, 0, 2, 1, 4)

    def probabilities(self, query: Tensor, key: Tensor, positions: Tensor | None) -> Tensor:
        """Returns (members, heads, length, length) fp32 with queries as rows.

        Args:
            query: (members, heads, length, head_dim).
            key: Like query.
            positions: (positions, heads, 3, head_dim) projected `AttentionBias.positions`, or None.
        """
        scores = torch.matmul(query, key.transpose(-1, -2)).float()
        num_terms = 1
        if positions is not None and self.columns is not None:
            position_query, position_key, _ = positions.permute(2, 1, 3, 0)
            shape = scores.shape
            to_position = torch.matmul(query, position_key).gather(-1, self.columns.expand(shape))
            to_content = torch.matmul(key, position_query).gather(-1, self.columns.T.expand(shape))
            scores = scores + to_position.float() + to_content.float().transpose(-1, -2)
            num_terms = 3
        scores = scores / math.sqrt(num_terms * query.shape[-1])
        if self.shared is not None:
            scores = scores + self.shared
        return scores.masked_fill(self.padding, float("-inf")).softmax(dim=-1)


@dataclass(frozen=True)
class AttentionBias:
    """Terms of the attention scores of one batch, the same for all layers.

    Attributes:
        groups: Groups of sequences of like length.
        slots: (tokens,) index of each token in the concatenated rows of all groups.
        positions: (1, positions, hidden) vectors of relative positions, which each layer projects to queries and keys
            with its own weights; None: the terms do not depend on the tokens.
    """

    groups: tuple[_Group, ...]
    slots: Tensor
    positions: Tensor | None = None


def group_by_length(lengths: Sequence[int], device: torch.device) -> tuple[tuple[_Group, ...], Tensor]:
    """Returns groups without terms, and `AttentionBias.slots`."""
    members = defaultdict(list)
    offsets = [0]
    for index, length in enumerate(lengths):
        offsets.append(offsets[-1] + length)
        members[-(-length // _PADDING_STEP) * _PADDING_STEP].append(index)
    groups: list[_Group] = []
    slots = torch.empty(offsets[-1], dtype=torch.int64)
    num_slots = 0
    for padded, indices in members.items():
        starts = torch.tensor([offsets[index] for index in indices])[:, None]
        own = torch.tensor([lengths[index] for index in indices])[:, None]
        places = torch.arange(padded)
        rows = (starts + torch.minimum(places, own - 1)).flatten()
        padding = places >= own
        for number, index in enumerate(indices):
            first = num_slots + number * padded
            slots[offsets[index] : offsets[index + 1]] = torch.arange(first, first + lengths[index])
        num_slots += padding.numel()
        groups.append(_Group(tuple(indices), padded, rows.to(device), padding[:, None, None].to(device)))
    return tuple(groups), slots.to(device)


def biased_attention(qkv: Tensor, bias: AttentionBias, positions: Tensor | None) -> Tensor:
    """Attends within each sequence, with the terms of `bias` added to the scores.

    Args:
        qkv: (tokens, heads, 3, head_dim) queries, keys and values.
        bias: Terms of the batch.
        positions: (positions, heads, 3, head_dim) projection of `bias.positions` by the layer, or None.

    Returns:
        (tokens, heads, head_dim).
    """
    outputs = []
    for group in bias.groups:
        query, key, value = group.take(qkv)
        weights = group.probabilities(query, key, positions).to(value.dtype)
        outputs.append(torch.matmul(weights, value).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, bias.slots)


def biased_attention_maps(
    qkv: Tensor, bias: AttentionBias, positions: Tensor | None, lengths: Sequence[int]
) -> list[Tensor]:
    """Returns the probabilities of `biased_attention` for each sequence: (heads, length, length) fp32."""
    maps: dict[int, Tensor] = {}
    for group in bias.groups:
        query, key, _ = group.take(qkv.float())
        weights = group.probabilities(query, key, None if positions is None else positions.float())
        for index, own in zip(group.members, weights, strict=True):
            maps[index] = own[:, : lengths[index], : lengths[index]]
    return [maps[index] for index in range(len(lengths))]


def _distances(length: int) -> Tensor:
    """Returns (length, length) on the host: position of the query (row) minus position of the key (column)."""
    places = torch.arange(length)
    return places[:, None] - places


def _logarithmic_buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Returns the bucket of each distance (Raffel et al. 2020, "T5", section 2.1), as MPNet does.

    Each direction has half of the buckets. Half of these hold one distance each, and the others grow logarithmically up
    to `max_distance`.
    """
    half = num_buckets // 2
    exact = half // 2
    size = distances.abs()
    growth = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    bucket = torch.where(size < exact, size, (exact + growth.long()).clamp(max=half - 1))
    return bucket + half * (distances < 0)


class BucketedBias(nn.Module):
    """One learned number for each head and bucket of distances, shared by all layers (Song et al. 2020, "MPNet").

    Args:
        num_heads: Number of attention heads.
        num_buckets: Number of buckets; half of them for each direction.
        max_distance: Distance from which on all distances share the last bucket.
    """

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.table = nn.Parameter(torch.zeros(num_buckets, num_heads))

    def forward(self, lengths: Sequence[int], device: torch.device) -> AttentionBias:
        """Returns the terms of a batch of sequences."""
        groups, slots = group_by_length(lengths, device)
        biased = []
        for group in groups:
            buckets = _logarithmic_buckets(_distances(group.length), len(self.table), self.max_distance)
            shared = self.table.float()[buckets.to(device)].permute(2, 0, 1)
            biased.append(replace(group, shared=shared))
        return AttentionBias(tuple(biased), slots)


def alibi_slopes(num_heads: int) -> list[float]:
    """Returns the slope of each head: 2^(-8/n), 2^(-16/n), ... for n heads (Press et al. 2022, arXiv:2108.12409).

    Other numbers of heads than powers of two have the slopes of the next smaller one, n, and then every second slope of
    2n heads, as in the authors' code.
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8 * (head + 1) / power) for head in range(power)]
    return slopes + [2.0 ** (-4 * (2 * head + 1) / power) for head in range(num_heads - power)]


class AlibiBias(nn.Module):
    """Slope of the head times the negative distance in both directions, as in MosaicBERT (arXiv:2312.17482).

    It has no parameters.

    Args:
        num_heads: Number of attention heads.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, lengths: Sequence[int], device: torch.device) -> AttentionBias:
        """Returns the terms of a batch of sequences."""
        groups, slots = group_by_length(lengths, device)
        slopes = torch.tensor(alibi_slopes(self.num_heads))[:, None, None]
        biased = [replace(group, shared=(-slopes * _distances(group.length).abs()).to(device)) for group in groups]
        return AttentionBias(tuple(biased), slots)


def _signed_buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Returns the row of each distance in DeBERTa's table: row num_buckets / 2 is distance 0.

    Distances up to a quarter of the buckets have a row each, larger ones share rows logarithmically up to
    `max_distance` (He et al. 2021, "DeBERTaV3", arXiv:2111.09543; `make_log_bucket_position` in transformers).
    """
    half = num_buckets // 2
    exact = half // 2
    size = distances.abs().clamp(min=exact - 1).float()
    growth = torch.log(size / exact) / torch.log(torch.tensor((max_distance - 1) / exact)) * (exact - 1)
    far = (growth.ceil() + exact).long() * distances.sign()
    return (torch.where(distances.abs() <= exact, distances, far) + half).clamp(0, num_buckets - 1)


class DisentangledBias(nn.Module):
    """Learned vectors of relative positions (He et al. 2021, "DeBERTa", arXiv:2006.03654, section 3.1).

    Each layer projects them with the weights of its queries and keys. A score is the sum of content to content, content
    to position and position to content, divided by the square root of 3 x head_dim.

    Args:
        num_positions: Rows of the table; half of them for each direction.
        max_distance: Distance from which on all distances share the last row.
        norm: Norm of the vectors.
    """

    def __init__(self, num_positions: int, max_distance: int, norm: LayerNorm) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.table = nn.Parameter(torch.zeros(num_positions, norm.weight.shape[0]))
        self.norm = norm

    def forward(self, lengths: Sequence[int], device: torch.device) -> AttentionBias:
        """Returns the terms of a batch of sequences."""
        groups, slots = group_by_length(lengths, device)
        # On the host, so that the device is not waited for.
        rows = [_signed_buckets(_distances(group.length), len(self.table), self.max_distance) for group in groups]
        first, last = min(int(each.min()) for each in rows), max(int(each.max()) for each in rows)
        placed = [replace(group, columns=(each - first).to(device)) for group, each in zip(groups, rows, strict=True)]
        return AttentionBias(tuple(placed), slots, self.norm(self.table[first : last + 1])[None])
