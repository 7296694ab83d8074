"""Attention with a relative bias equals its formula, in packed sequences of any lengths, forward and backward."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from framework.nn.attention_bias import (
    AlibiBias,
    BucketedBias,
    DisentangledBias,
    alibi_slopes,
    biased_attention,
    biased_attention_maps,
)
from framework.nn.norm import LayerNorm

HEADS, HEAD_DIM = 3, 8
LENGTHS = (5, 40, 1, 16, 17, 40)
CPU = torch.device("cpu")


def make_qkv(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(lengths), HEADS, 3, HEAD_DIM, dtype=torch.float64, generator=generator)


def mpnet_bucket(distance: int) -> int:
    """Returns the bucket of `relative_position_bucket` in MPNet, 32 buckets and distance 128, for one number."""
    side, size = (16 if distance < 0 else 0), abs(distance)
    if size < 8:
        return side + size
    return side + min(15, 8 + int(math.log(size / 8) / math.log(16) * 8))


def slow_attention(qkv: Tensor, lengths: tuple[int, ...], extra) -> tuple[Tensor, list[Tensor]]:
    """Computes each sequence by the formula; `extra(head, query position, key position)` is added to the scores."""
    outputs, maps = [], []
    for own in qkv.split(list(lengths)):
        query, key, value = own.unbind(2)
        scores = torch.einsum("ihd,jhd->hij", query, key) / HEAD_DIM**0.5
        terms = [[[extra(h, i, j) for j in range(len(own))] for i in range(len(own))] for h in range(HEADS)]
        weights = (scores + torch.stack([torch.stack([torch.stack(row) for row in one]) for one in terms])).softmax(-1)
        maps.append(weights)
        outputs.append(torch.einsum("hij,jhd->ihd", weights, value))
    return torch.cat(outputs), maps


@pytest.fixture(scope="module")
def bucketed() -> BucketedBias:
    bias = BucketedBias(HEADS, 32, 128).double()
    with torch.no_grad():
        bias.table.copy_(torch.randn(32, HEADS, generator=torch.Generator().manual_seed(1)))
    return bias


def test_bucketed_bias_forward_and_backward(bucketed):
    qkv = make_qkv().requires_grad_()
    mix = torch.randn(sum(LENGTHS), HEADS, HEAD_DIM, dtype=torch.float64)
    expected, maps = slow_attention(qkv, LENGTHS, lambda h, i, j: bucketed.table[mpnet_bucket(i - j), h])
    expected_grads = torch.autograd.grad((expected * mix).sum(), [qkv, bucketed.table])
    bias = bucketed(LENGTHS, CPU)
    ours = biased_attention(qkv, bias, None)
    # Scores are fp32.
    assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad((ours * mix).sum(), [qkv, bucketed.table])
    for mine, theirs in zip(grads, expected_grads, strict=True):
        assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    found = biased_attention_maps(qkv, bias, None, LENGTHS)
    for mine, theirs in zip(found, maps, strict=True):
        assert_close(mine, theirs.float(), rtol=1e-5, atol=1e-6)


def test_a_sequence_does_not_depend_on_the_others(bucketed):
    qkv = make_qkv().float()
    together = biased_attention(qkv, bucketed(LENGTHS, CPU), None).split(list(LENGTHS))
    for own, length, packed in zip(qkv.split(list(LENGTHS)), LENGTHS, together, strict=True):
        assert torch.equal(biased_attention(own, bucketed((length,), CPU), None), packed)


def test_distances_beyond_the_largest_share_the_last_bucket():
    bias = BucketedBias(1, 32, 128)
    with torch.no_grad():
        bias.table.copy_(torch.arange(32.0)[:, None])
    (group,) = bias((300,), CPU).groups
    row = group.shared[0, 150]
    assert row[:300].tolist() == [float(mpnet_bucket(150 - j)) for j in range(300)]
    assert row[0] == 15 and row[299] == 31 and row[150] == 0


def deberta_row(distance: int) -> int:
    """Returns the row of DeBERTa's table for 16 rows and distance 64, for one number."""
    side, size = (1 if distance > 0 else -1), abs(distance)
    if size <= 4:
        return distance + 8
    far = math.ceil(math.log(size / 4) / math.log(63 / 4) * 3) + 4
    return min(max(side * far + 8, 0), 15)


def test_disentangled_bias_forward():
    generator = torch.Generator().manual_seed(1)
    module = DisentangledBias(16, 64, LayerNorm(HEADS * HEAD_DIM, 1e-7))
    projected = torch.randn(16, HEADS, 3, HEAD_DIM, generator=generator)
    qkv = make_qkv().float()
    bias = module(LENGTHS, CPU)
    first = deberta_row(1 - 48)
    positions = projected[first : first + bias.positions.shape[1]]
    ours = biased_attention(qkv, bias, positions)
    outputs = []
    for own in qkv.split(list(LENGTHS)):
        query, key, value = own.unbind(2)
        rows = torch.tensor([[deberta_row(i - j) for j in range(len(own))] for i in range(len(own))])
        scores = torch.einsum("ihd,jhd->hij", query, key)
        scores = scores + torch.einsum("ihd,ijhd->hij", query, projected[rows][:, :, :, 1])
        scores = scores + torch.einsum("jhd,ijhd->hij", key, projected[rows][:, :, :, 0])
        weights = (scores / (3 * HEAD_DIM) ** 0.5).softmax(-1)
        outputs.append(torch.einsum("hij,jhd->ihd", weights, value))
    assert_close(ours, torch.cat(outputs), rtol=1e-5, atol=1e-5)


def test_alibi_forward():
    qkv = make_qkv().float()
    slopes = (1 / 16, 1 / 256, 1 / 4)  # two heads have 2^-4 and 2^-8, and the third the first of four heads
    expected, _ = slow_attention(qkv, LENGTHS, lambda h, i, j: torch.tensor(-slopes[h] * abs(i - j)))
    assert_close(biased_attention(qkv, AlibiBias(HEADS)(LENGTHS, CPU), None), expected, rtol=1e-5, atol=1e-5)
    assert alibi_slopes(8) == [2.0**-head for head in range(1, 9)]
