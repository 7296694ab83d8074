"""Hashed dropout: its rate, what its masks depend on, and their independence between neighbours."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from framework.nn.dropout import HashedDropout, dropout_base, dropout_mask, has_dropout, layer_keys, token_keys
from framework.random import key, mix
from tests.support.models.packs import make_batch

CHANNELS = 96


def dropped(keys: Tensor, site: str = "site", prob: float = 0.1, channels: int = CHANNELS) -> Tensor:
    """Returns (tokens, channels) bool, True where a channel is dropped."""
    return HashedDropout(prob, site)(torch.ones(len(keys), channels), keys) == 0


def many_keys(step: int = 0) -> Tensor:
    return token_keys(dropout_base(1, step, 0), make_batch([128] * 32))


def within(count: float, trials: int, prob: float, sigmas: float = 4.5) -> bool:
    return abs(count - trials * prob) <= sigmas * math.sqrt(trials * prob * (1 - prob))


@pytest.mark.parametrize("prob", [0.1, 0.5, 0.003])
def test_rate_lies_within_binomial_bounds(prob: float) -> None:
    mask = dropped(many_keys(), prob=prob)
    assert within(mask.sum().item(), mask.numel(), prob)
    trials, channels = mask.shape
    bounds = 5.0  # 96 channels and 4,096 tokens are examined one by one
    assert all(within(count, trials, prob, bounds) for count in mask.sum(0).tolist())
    if prob * channels > 5:
        assert all(within(count, channels, prob, bounds + 1) for count in mask.sum(1).tolist())


def test_kept_values_are_scaled_so_that_the_mean_is_kept() -> None:
    keys = many_keys()
    out = HashedDropout(0.1, "site")(torch.full((len(keys), 4), 2.0), keys)
    threshold = round(0.1 * 2**15)
    zero, kept = out.unique().tolist()
    assert zero == 0.0
    assert kept == pytest.approx(2.0 / (1 - threshold / 2**15), rel=1e-6)


def test_token_keys_are_the_counter_based_keys_of_their_parts() -> None:
    batch = make_batch([3, 2], sequence_ids=[17, -1])
    keys = token_keys(dropout_base(5, 7, 1), batch)
    base = key(5, "dropout", 7, 1)
    expected = [
        int(mix(int(mix(base, np.array([sequence]))[0]), np.array([position]))[0])
        for sequence, position in [(17, 0), (17, 1), (17, 2), (-1, 0), (-1, 1)]
    ]
    assert [value % 2**64 for value in keys.tolist()] == expected
    assert token_keys(torch.tensor(dropout_base(5, 7, 1)), batch).equal(keys)


def test_mask_does_not_depend_on_packing_order_splitting_or_neighbours() -> None:
    together = token_keys(dropout_base(1, 3, 0), make_batch([5, 9, 4], sequence_ids=[10, 11, 12]))
    other_order = token_keys(dropout_base(1, 3, 0), make_batch([4, 5, 9], sequence_ids=[12, 10, 11]))
    alone = token_keys(dropout_base(1, 3, 0), make_batch([9], sequence_ids=[11]))
    mask = dropped(together)
    assert mask[5:14].any() and not mask[5:14].all()
    assert torch.equal(mask[5:14], dropped(alone))
    assert torch.equal(mask, dropped(other_order)[[*range(4, 18), *range(4)]])


CHANGES: dict[str, Callable[[], Tensor]] = {
    "seed": lambda: dropped(token_keys(dropout_base(2, 0, 0), make_batch([128] * 8))),
    "step": lambda: dropped(token_keys(dropout_base(1, 1, 0), make_batch([128] * 8))),
    "pass": lambda: dropped(token_keys(dropout_base(1, 0, 1), make_batch([128] * 8))),
    "sequence": lambda: dropped(token_keys(dropout_base(1, 0, 0), make_batch([128] * 8, sequence_ids=range(8, 16)))),
    "position": lambda: dropped(token_keys(dropout_base(1, 0, 0), make_batch([129] * 8)).view(8, 129)[:, 1:].flatten()),
    "layer_keys": lambda: dropped(layer_keys(token_keys(dropout_base(1, 0, 0), make_batch([128] * 8)), 1)[0]),
    "site": lambda: dropped(token_keys(dropout_base(1, 0, 0), make_batch([128] * 8)), site="other"),
}


@pytest.mark.parametrize("part", CHANGES)
def test_each_part_of_the_key_gives_an_independent_mask(part: str) -> None:
    mask, other = dropped(token_keys(dropout_base(1, 0, 0), make_batch([128] * 8))), CHANGES[part]()
    assert within((mask & other).sum().item(), mask.numel(), 0.01)


def test_layer_keys_differ_by_layer_and_pass_none_through() -> None:
    keys = many_keys()
    first, second = (dropped(of_layer) for of_layer in layer_keys(keys, 2))
    assert within((first & second).sum().item(), first.numel(), 0.01)
    assert layer_keys(None, 2) == [None, None]


@pytest.mark.parametrize("shift", [1, 2, 3, 4, 5, 8])
def test_neighbouring_channels_are_independent(shift: int) -> None:
    mask = dropped(many_keys())
    both = mask[:, shift:] & mask[:, :-shift]
    assert within(both.sum().item(), both.numel(), 0.01)


@pytest.mark.parametrize("shift", [1, 2, 128])
def test_neighbouring_tokens_and_sequences_are_independent(shift: int) -> None:
    mask = dropped(many_keys())
    for channel_shift in (0, 1, 4):
        both = mask[shift:, channel_shift:] & mask[:-shift, : CHANNELS - channel_shift]
        assert within(both.sum().item(), both.numel(), 0.01)


def test_no_two_channels_or_steps_are_correlated() -> None:
    mask = torch.cat([dropped(many_keys(0)), dropped(many_keys(1))], dim=1).double()
    correlations = torch.corrcoef(mask.T).fill_diagonal_(0)
    # 18,336 pairs over 4,096 tokens: the largest of that many normal values stays below 5 standard deviations.
    assert correlations.abs().max() < 5.5 / math.sqrt(len(mask))


def test_channels_of_a_narrower_layer_are_the_first_ones() -> None:
    keys = many_keys()[:50]
    assert torch.equal(dropped(keys, channels=10), dropped(keys, channels=16)[:, :10])


def test_the_comparison_uses_fifteen_bits() -> None:
    """Computes the lanes with Python integers from the same words."""
    site_key, threshold = key("dropout site", 2, "x"), 2**14

    def finalise(z: int) -> int:
        def signed_shift(value: int, bits: int) -> int:
            return ((value - 2**64 if value >= 2**63 else value) >> bits) % 2**64

        z = ((z ^ signed_shift(z, 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ signed_shift(z, 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ signed_shift(z, 31)

    tokens = [0, 1, 12345, 2**62 + 7, -5]
    mask = dropout_mask(torch.tensor(tokens), 12, threshold, site_key)
    for token, row in zip(tokens, (mask > 0).tolist(), strict=True):
        stream = int(mix(0, np.array([token % 2**64 ^ site_key], dtype=np.uint64))[0])
        words = [finalise((stream + index * 0x9E3779B97F4A7C15) % 2**64) for index in (1, 2, 3)]
        assert row == [((word >> 16 * lane) & 0x7FFF) >= threshold for word in words for lane in range(4)]


def test_gradient_and_residual_use_the_same_mask() -> None:
    keys = many_keys()[:20]
    x, residual = torch.randn(20, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    dropout = HashedDropout(0.3, "site")
    out = dropout(x, keys, residual=residual)
    mask = dropout(torch.ones(20, 8), keys)
    assert (mask == 0).any()
    torch.testing.assert_close(out, residual + x * mask)
    weights = torch.randn(20, 8)
    (out * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights * mask)
    torch.testing.assert_close(residual.grad, weights)


def test_bf16_values_keep_their_dtype_and_add_to_an_fp32_residual() -> None:
    keys = many_keys()[:20]
    x, residual = torch.randn(20, 8).bfloat16().requires_grad_(), torch.randn(20, 8)
    dropout = HashedDropout(0.3, "site")
    assert dropout(x, keys).dtype == torch.bfloat16
    out = dropout(x, keys, residual=residual)
    out.sum().backward()
    assert out.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16


def test_without_keys_or_probability_nothing_is_dropped() -> None:
    x = torch.randn(3, 4)
    assert HashedDropout(0.5, "site")(x, None) is x
    assert HashedDropout(0.0, "site")(x, many_keys()[:3]) is x
    assert torch.equal(HashedDropout(0.5, "site")(x, None, residual=x), x + x)


@pytest.mark.parametrize(("prob", "expected"), [(0.0, False), (1e-6, False), (0.1, True)])
def test_a_model_has_dropout_if_any_module_drops_channels(prob: float, expected: bool) -> None:
    modules = torch.nn.ModuleList([HashedDropout(0.0, "first"), HashedDropout(prob, "second")])
    assert has_dropout(modules) is expected
