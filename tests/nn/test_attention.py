"""Attention on the CPU, in both implementations, compared with the formula in plain loops."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from framework.nn import attention_backend, attention_cpu
from framework.nn.attention_backend import attention, reference_attention, self_attention
from framework.nn.rotary import RotaryTable, apply_rotary

LENGTHS = (7, 1, 12, 5)
OPTIONS = [(None, False), (4, False), (6, True), (10, False), (None, True), (128, False)]


WAYS = {"together": (256, 1536), "mixed": (256, 7 * 8), "alone": (256, 0), "loop": (0, 0)}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Selects the grouped lengths: all short ones, those of up to 7 tokens, none, and none without matrix products."""
    use_way(monkeypatch, *WAYS[request.param])
    yield request.param
    attention_cpu._kept_groups.cache_clear()


def use_way(monkeypatch: pytest.MonkeyPatch, max_length: int, short_size: int) -> None:
    attention_cpu._kept_groups.cache_clear()
    monkeypatch.setattr(attention_backend, "MAX_LENGTH", max_length)
    monkeypatch.setattr(attention_cpu, "SHORT_SIZE", short_size)


def random_qkv(num_heads: int = 3, head_dim: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(LENGTHS), num_heads, 3, head_dim, generator=generator)


def by_loops(qkv: Tensor, window: int | None, causal: bool) -> Tensor:
    """Computes the formula for one query of one head at a time, in float64."""
    qkv = qkv.double()
    outputs = torch.zeros(qkv.shape[0], qkv.shape[1], qkv.shape[3], dtype=torch.float64)
    start = 0
    for length in LENGTHS:
        for head in range(qkv.shape[1]):
            for i in range(length):
                seen = [
                    j for j in range(length) if (window is None or abs(i - j) <= window // 2) and (not causal or j <= i)
                ]
                keys = torch.stack([qkv[start + j, head, 1] for j in seen])
                values = torch.stack([qkv[start + j, head, 2] for j in seen])
                weights = (keys @ qkv[start + i, head, 0] / math.sqrt(qkv.shape[3])).exp()
                outputs[start + i, head] = (weights[:, None] * values).sum(0) / weights.sum()
        start += length
    return outputs


def run_attention(qkv: Tensor, window: int | None, causal: bool) -> Tensor:
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    return attention(*qkv.unbind(2), cu_seqlens, LENGTHS, max(LENGTHS), window=window, causal=causal)


@pytest.mark.parametrize(("window", "causal"), OPTIONS)
def test_reference_attention_equals_the_formula(window: int | None, causal: bool) -> None:
    qkv = random_qkv()
    outputs, probabilities = reference_attention(*qkv.unbind(2), LENGTHS, window=window, causal=causal)
    torch.testing.assert_close(outputs, by_loops(qkv, window, causal).float(), atol=1e-6, rtol=1e-5)
    assert [tuple(p.shape) for p in probabilities] == [(3, length, length) for length in LENGTHS]
    for p in probabilities:
        torch.testing.assert_close(p.sum(-1), torch.ones(p.shape[:2]))


@pytest.mark.parametrize(("window", "causal"), OPTIONS)
def test_values_and_gradients_equal_the_formula(window: int | None, causal: bool, way: str) -> None:
    ours, theirs = random_qkv().requires_grad_(), random_qkv().double().requires_grad_()
    weights = torch.randn(sum(LENGTHS), 3, 8, generator=torch.Generator().manual_seed(1))
    out = run_attention(ours, window, causal)
    expected = by_loops(theirs, window, causal)
    torch.testing.assert_close(out, expected.float(), atol=1e-6, rtol=1e-5)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad.float(), atol=2e-6, rtol=1e-5)


def test_rotary_rotates_by_position_and_gradients_are_rotated_back(way: str) -> None:
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    ours, theirs = random_qkv().requires_grad_(), random_qkv().double().requires_grad_()
    # The pair (i, i + head_dim / 2) as a complex number times exp(1j * position * theta ** (-2 i / head_dim)).
    angles = positions[:, None].double() * 100.0 ** (-torch.arange(0, 8, 2).double() / 8)
    turns = torch.polar(torch.ones_like(angles), angles)[:, None, None]
    queries_and_keys = torch.complex(theirs[:, :, :2, :4], theirs[:, :, :2, 4:]) * turns
    rotated = torch.cat((torch.cat((queries_and_keys.real, queries_and_keys.imag), -1), theirs[:, :, 2:]), dim=2)
    expected = by_loops(rotated, 4, False)

    rotary = RotaryTable(8, 16, theta=100.0)(positions)
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    out = self_attention(ours, rotary, cu_seqlens, LENGTHS, max(LENGTHS), window=4)
    torch.testing.assert_close(out, expected.float(), atol=1e-6, rtol=1e-5)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad.float(), atol=2e-6, rtol=1e-5)


def test_scores_depend_only_on_the_distance_of_positions() -> None:
    table = RotaryTable(8, 64, theta=10000.0)
    query, key = random_qkv(seed=3)[0, 0, 0], random_qkv(seed=4)[0, 0, 1]

    def score(i: int, j: int) -> Tensor:
        rotated = apply_rotary(torch.stack((query, key)), *table(torch.tensor([i, j])))
        return rotated[0] @ rotated[1]

    torch.testing.assert_close(score(5, 2), score(45, 42))
    assert (score(5, 2) - score(5, 3)).abs() > 1e-4


def test_a_sequence_too_long_for_the_matrix_products_uses_the_loop() -> None:
    length = attention_backend.MAX_LENGTH + 1
    qkv = torch.randn(length, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    cu_seqlens = torch.tensor([0, length], dtype=torch.int32)
    out = self_attention(qkv, None, cu_seqlens, (length,), length, window=8)
    expected, _ = reference_attention(*qkv.unbind(2), (length,), window=8)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_sequence_does_not_depend_on_the_others_of_its_pack(dtype: torch.dtype) -> None:
    lengths = (*range(1, 50), *[30] * 20, 70)  # several groups, one of them with two parts
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 12, 3, 32, generator=generator).to(dtype).requires_grad_()
    weights = torch.randn(sum(lengths), 12, 32, generator=generator).to(dtype)

    def attend(rows: Tensor, lengths: tuple[int, ...]) -> Tensor:
        offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
        return self_attention(rows, None, offsets, lengths, max(lengths))

    whole = attend(qkv, lengths)
    whole.backward(weights)
    for part, grad, out, weight in zip(*(each.split(lengths) for each in (qkv, qkv.grad, whole, weights)), strict=True):
        alone = part.detach().requires_grad_()
        mixed = attend(alone, (len(part),))
        mixed.backward(weight)
        assert torch.equal(mixed, out)
        assert torch.equal(alone.grad, grad)


def test_bf16_stays_near_fp32(way: str) -> None:
    qkv = random_qkv()
    out = run_attention(qkv.bfloat16(), None, False)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), by_loops(qkv, None, False).float(), atol=0.03, rtol=0.03)


def test_bf16_of_short_sequences_is_rounded_once() -> None:
    qkv = random_qkv().bfloat16()
    assert torch.equal(run_attention(qkv, None, False), run_attention(qkv.float(), None, False).bfloat16())


def test_a_fake_step_leaves_no_cache_for_a_real_one() -> None:
    expected = run_attention(random_qkv(), 4, False)
    attention_cpu._kept_groups.cache_clear()
    with FakeTensorMode():
        rows = torch.empty(random_qkv().shape)
        self_attention(rows, None, torch.empty(len(LENGTHS) + 1), LENGTHS, max(LENGTHS), window=4)
    assert torch.equal(run_attention(random_qkv(), 4, False), expected)
