"""The attentions of a decoder compared with the formula in plain loops, with and without a cache."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from framework.nn import attention_backend
from framework.nn.attention_backend import cross_attention
from framework.nn.decoder_attention import AttentionCache, CausalSelfAttention, CrossAttention
from framework.nn.dropout import decoder_keys, dropout_base, token_keys
from framework.random import key, mix
from tests.support.models.fixed_shape import Called
from tests.support.models.packs import make_batch

QUERIES, KEYS = (3, 1, 6), (5, 9, 2)
HEADS, HEAD_DIM = 2, 4
HIDDEN = HEADS * HEAD_DIM


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_loops(query: Tensor, key_: Tensor, value: Tensor) -> Tensor:
    """Computes softmax attention for one query of one head at a time."""
    out = torch.zeros_like(query)
    first, first_key = 0, 0
    for length, key_length in zip(QUERIES, KEYS, strict=True):
        for i in range(first, first + length):
            for head in range(query.shape[1]):
                seen = range(first_key, first_key + key_length)
                weights = torch.stack(
                    [(query[i, head] @ key_[j, head] / math.sqrt(query.shape[2])).exp() for j in seen]
                )
                values = torch.stack([value[j, head] for j in seen])
                out[i, head] = (weights[:, None] * values).sum(0) / weights.sum()
        first, first_key = first + length, first_key + key_length
    return out


def test_queries_attend_only_to_the_keys_of_their_own_sequence() -> None:
    query = random(sum(QUERIES), HEADS, HEAD_DIM, seed=0).requires_grad_()
    keys, values = (random(sum(KEYS), HEADS, HEAD_DIM, seed=seed).requires_grad_() for seed in (1, 2))
    weights = random(sum(QUERIES), HEADS, HEAD_DIM, seed=3)
    out = cross_attention(query, keys, values, make_batch(QUERIES), make_batch(KEYS))
    expected = by_loops(query, keys, values)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    ours = torch.autograd.grad((out * weights).sum(), (query, keys, values))
    theirs = torch.autograd.grad((expected * weights).sum(), (query, keys, values))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_sequence_without_queries_gives_nothing() -> None:
    query = random(4, HEADS, HEAD_DIM, seed=0)
    keys, values = (random(sum(KEYS), HEADS, HEAD_DIM, seed=seed) for seed in (1, 2))
    out = cross_attention(query, keys, values, make_batch((3, 0, 1)), make_batch(KEYS))
    without = cross_attention(
        query,
        torch.cat((keys[:5], keys[14:])),
        torch.cat((values[:5], values[14:])),
        make_batch((3, 1)),
        make_batch((5, 2)),
    )
    torch.testing.assert_close(out, without)


def test_cuda_in_half_precision_gets_the_lengths_of_queries_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    kernel = attention_backend.varlen_attn

    def recorded(*args, **options):
        given["sizes"], given["offsets"], given["options"] = args[5:], [offsets.shape for offsets in args[3:5]], options
        return kernel(*args, **options)

    monkeypatch.setattr(attention_backend, "varlen_attn", recorded)
    queries, keys = make_batch(QUERIES), make_batch(KEYS)
    with FakeTensorMode(), torch.no_grad(), Called() as called:
        offsets = torch.empty(4, dtype=torch.int32, device="cuda")
        moved = [replace(batch, cu_seqlens=offsets) for batch in (queries, keys)]
        query, key_ = (
            torch.empty(sum(lengths), HEADS, 16, dtype=torch.bfloat16, device="cuda") for lengths in (QUERIES, KEYS)
        )
        out = cross_attention(query, key_, key_, *moved)
    assert (out.shape, out.device.type) == ((10, HEADS, 16), "cuda")
    assert given == {"sizes": (6, 9), "offsets": [(4,), (4,)], "options": {}}
    assert any("varlen_attn" in name for name in called.names)
    assert not [name for name in called.names if "_local_scalar_dense" in name]


def modules() -> tuple[CausalSelfAttention, CrossAttention]:
    torch.manual_seed(0)
    return CausalSelfAttention(HIDDEN, HEADS, True), CrossAttention(HIDDEN, HEADS, True)


def test_a_token_attends_to_itself_and_earlier_tokens() -> None:
    attention, _ = modules()
    batch, hidden_states = make_batch(QUERIES), random(sum(QUERIES), HIDDEN, seed=1)
    rows = attention.qkv(hidden_states).unflatten(-1, (HEADS, 3, HEAD_DIM))
    expected = torch.zeros(sum(QUERIES), HEADS, HEAD_DIM)
    first = 0
    for length in QUERIES:
        for i in range(first, first + length):
            for head in range(HEADS):
                query, keys, values = rows[i, head, 0], rows[first : i + 1, head, 1], rows[first : i + 1, head, 2]
                expected[i, head] = (keys @ query / math.sqrt(HEAD_DIM)).softmax(0) @ values
        first += length
    torch.testing.assert_close(attention(hidden_states, batch), attention.output(expected.flatten(1)))


@torch.no_grad()
def test_decoding_token_by_token_with_a_cache_equals_one_pass() -> None:
    attention, cross = modules()
    lengths = (4, 4, 4)
    batch, sources = make_batch(lengths), make_batch(KEYS)
    hidden_states, source_states = random(12, HIDDEN, seed=1), random(sum(KEYS), HIDDEN, seed=2)
    cache = AttentionCache()
    steps = make_batch((1, 1, 1))
    found = []
    for position in range(4):
        rows = hidden_states.view(3, 4, HIDDEN)[:, position]
        # Keys and values of the sources are computed once: later inputs are ignored.
        given = source_states if position == 0 else torch.full_like(source_states, float("nan"))
        found.append((attention(rows, steps, cache), cross(rows, steps, given, sources, cache)))
    expected = (attention(hidden_states, batch), cross(hidden_states, batch, source_states, sources))
    for mine, theirs in zip(zip(*found, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.stack(mine, dim=1).flatten(0, 1), theirs)


@torch.no_grad()
def test_a_cache_follows_its_hypotheses() -> None:
    attention, _ = modules()
    before, now = random(3, HIDDEN, seed=1), random(4, HIDDEN, seed=2)
    cache = AttentionCache()
    cache.select(torch.tensor([0, 1, 2]))
    attention(before, make_batch((1, 1, 1)), cache)
    parents = [2, 0, 0, 1]
    cache.select(torch.tensor(parents))
    found = attention(now, make_batch((1, 1, 1, 1)), cache)
    pairs = torch.stack([torch.stack((before[parent], row)) for parent, row in zip(parents, now, strict=True)])
    expected = attention(pairs.flatten(0, 1), make_batch((2, 2, 2, 2)))[1::2]
    torch.testing.assert_close(found, expected)


def test_dropout_keys_of_targets_equal_those_of_sequence_and_position() -> None:
    targets = make_batch([2, 3], sequence_ids=[17, 4])
    batch = replace(make_batch([3, 2], sequence_ids=[17, 4]), decoder_inputs=targets)
    found = decoder_keys(token_keys(dropout_base(5, 7, 1), batch), batch)
    base = key(5, "dropout", 7, 1)

    def hashed(*parts: int) -> int:
        value = parts[0]
        for part in parts[1:]:
            value = int(mix(value, np.array([part]))[0])
        return value

    expected = []
    for sequence, length in ((17, 2), (4, 3)):
        first_token = hashed(base, sequence, 0)
        # The mixing function of a key and a part is symmetric in the two.
        expected += [
            hashed(int(mix(first_token, np.array([key("decoder")], dtype=np.uint64))[0]), p) for p in range(length)
        ]
    assert [value % 2**64 for value in found.tolist()] == expected
    assert decoder_keys(None, batch) is None
    assert not set(found.tolist()) & set(token_keys(dropout_base(5, 7, 1), batch).tolist())
