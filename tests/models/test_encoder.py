"""The encoder: sequences of a pack are independent, and the results equal those of a slow plain version."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.attention_backend import reference_attention
from framework.nn.dropout import dropout_base, token_keys
from framework.nn.initialization import initial_values
from tests.support.models.packs import make_batch
from tests.support.models.shapes import BERT, MODERN, ROBERTA

FAMILIES = pytest.mark.parametrize("config", [BERT, ROBERTA, MODERN], ids=["bert", "roberta", "modernbert"])


def build(config: EncoderConfig) -> TransformerEncoder:
    """Builds an encoder whose weights are large enough that every part of it affects the output."""
    config = dataclasses.replace(config, initializer_range=0.3)
    model = TransformerEncoder(config)
    with torch.no_grad():
        for name, make in initial_values(model, config, seed=1):
            model.get_parameter(name).copy_(make())
            if name.endswith("bias"):
                model.get_parameter(name).normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return model


def pick(batch: PackedBatch, index: int) -> PackedBatch:
    """Returns one sequence of a batch, alone in its pack."""
    first, last = batch.cu_seqlens[index].item(), batch.cu_seqlens[index + 1].item()
    alone = make_batch([last - first], [batch.sequence_ids[index].item()], batch.input_ids[first:last])
    return dataclasses.replace(alone, token_type_ids=batch.token_type_ids[first:last])


@FAMILIES
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_perturbing_one_sequence_changes_no_output_of_another(config: EncoderConfig, changed: int) -> None:
    model, batch = build(config), make_batch([7, 11, 5])
    first, last = batch.cu_seqlens[changed], batch.cu_seqlens[changed + 1]
    other_words = batch.input_ids.clone()
    other_words[first:last] = (other_words[first:last] + 1) % config.vocab_size
    perturbed = dataclasses.replace(batch, input_ids=other_words)
    keys = token_keys(dropout_base(1, 0, 0), batch)
    difference = (model(batch, keys) - model(perturbed, keys)).abs().amax(1)
    assert (difference[first:last] > 0).all()
    assert not torch.cat((difference[:first], difference[last:])).any()


@FAMILIES
def test_a_pack_gives_the_outputs_of_each_sequence_alone_with_dropout(config: EncoderConfig) -> None:
    model, batch = build(config), make_batch([7, 11, 1, 5], sequence_ids=[4, 9, 2, 7])
    for use_dropout in (False, True):
        together = model(batch, token_keys(dropout_base(1, 3, 0), batch) if use_dropout else None)
        for index, part in enumerate(together.split(batch.lengths)):
            alone = pick(batch, index)
            expected = model(alone, token_keys(dropout_base(1, 3, 0), alone) if use_dropout else None)
            torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)


@FAMILIES
def test_a_gradient_does_not_reach_another_sequence(config: EncoderConfig) -> None:
    model, batch = build(config), make_batch([7, 11, 5])
    embeddings = model.embed(batch).detach().requires_grad_()
    weights = torch.randn(11, config.hidden_size)
    (model.encode(embeddings, batch)[7:18] * weights).sum().backward()
    assert (embeddings.grad[7:18].abs().amax(1) > 0).all()
    assert not embeddings.grad[:7].any() and not embeddings.grad[18:].any()


@FAMILIES
def test_embed_then_encode_equals_forward_and_ends_the_hidden_states(config: EncoderConfig) -> None:
    model, batch = build(config), make_batch([7, 11])
    keys = token_keys(dropout_base(1, 0, 0), batch)
    assert torch.equal(model.encode(model.embed(batch, keys), batch, keys), model(batch, keys))
    states = model.hidden_states(batch)
    assert len(states) == config.num_layers + 1
    assert torch.equal(states[0], model.embed(batch))
    assert torch.equal(states[-1], model(batch))
    assert not torch.equal(states[-2], states[-1])


def test_dropout_works_at_every_site_and_differs_by_layer() -> None:
    """Each of the three probabilities alone changes the output; the same keys give the same output again."""
    batch = make_batch([7, 11])
    keys = token_keys(dropout_base(1, 0, 0), batch)
    plain = dataclasses.replace(BERT, hidden_dropout=0.0, embedding_dropout=0.0)
    without = build(plain)(batch, keys)
    assert torch.equal(without, build(plain)(batch))
    for name in ("hidden_dropout", "embedding_dropout", "feed_forward_dropout"):
        model = build(dataclasses.replace(plain, **{name: 0.5}))
        assert not torch.allclose(model(batch, keys), without)
        assert torch.equal(model(batch, keys), model(batch, keys))
    after_attention = build(dataclasses.replace(plain, hidden_dropout=0.5, feed_forward_dropout=0.0))
    assert {layer.attention_output_dropout.prob for layer in after_attention.layers} == {0.5}
    assert {layer.feed_forward_output_dropout.prob for layer in after_attention.layers} == {0.0}
    seen: list[Tensor] = []
    model = build(BERT)
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    model(batch, keys)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def slow_layer(model: TransformerEncoder, index: int, x: Tensor, batch: PackedBatch, turns: Tensor | None) -> Tensor:
    """Computes one layer by its formulas, from the parameters' names, in the dtype of x."""
    config = model.config
    prefix = f"layers.{index}."
    weights = {
        name.removeprefix(prefix): parameter.to(x.dtype)
        for name, parameter in model.named_parameters()
        if name.startswith(prefix)
    }

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ weights[name + ".weight"].T + weights.get(name + ".bias", 0.0)

    def norm(name: str, value: Tensor) -> Tensor:
        if name + ".weight" not in weights:
            return value
        centred = value - value.mean(1, keepdim=True)
        variance = (centred**2).mean(1, keepdim=True)
        return centred / (variance + config.norm_eps).sqrt() * weights[name + ".weight"] + weights.get(
            name + ".bias", 0.0
        )

    def attend(value: Tensor) -> Tensor:
        qkv = linear("attention.qkv", value).view(len(x), config.num_heads, 3, config.head_dim)
        query, key, values = qkv.unbind(2)
        if turns is not None:
            half = config.head_dim // 2
            query, key = (
                torch.view_as_real(torch.complex(part[..., :half], part[..., half:]) * turns).mT.flatten(2)
                for part in (query, key)
            )
        window = config.attention_window(index)
        mixed, _ = reference_attention(query, key, values, batch.lengths, window=window)
        return linear("attention.output", mixed.flatten(1))

    def feed(value: Tensor) -> Tensor:
        up = linear("feed_forward.up", value)
        inner = functional.gelu(linear("feed_forward.gate", value)) * up if config.gated else functional.gelu(up)
        return linear("feed_forward.down", inner)

    if config.norm_placement == "pre":
        x = x + attend(norm("attention_norm", x))
        return x + feed(norm("feed_forward_norm", x))
    x = norm("attention_norm", x + attend(x))
    return norm("feed_forward_norm", x + feed(x))


@FAMILIES
@pytest.mark.parametrize("index", [0, 1])
def test_values_and_gradients_of_a_layer_equal_its_formulas(config: EncoderConfig, index: int) -> None:
    model, batch = build(config), make_batch([7, 11])
    rotary = model._rotary(batch).get(model.layer_kinds[index])
    turns = None
    if rotary is not None:
        theta = config.rope_theta_global if config.attention_window(index) is None else config.rope_theta_local
        frequencies = theta ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        angles = batch.position_ids[:, None] * frequencies
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
    x = torch.randn(18, config.hidden_size, generator=torch.Generator().manual_seed(4))
    weights = torch.randn(18, config.hidden_size, generator=torch.Generator().manual_seed(5))
    results = []
    for run in (
        lambda value: model.layers[index](value, batch, rotary, None),
        lambda value: slow_layer(model, index, value, batch, turns),
    ):
        model.zero_grad()
        value = x.clone().requires_grad_()
        out = run(value)
        (out * weights).sum().backward()
        grads = {name: p.grad for name, p in model.layers[index].named_parameters()}
        results.append((out, value.grad, grads))
    (ours, our_grad, our_grads), (theirs, their_grad, their_grads) = results
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(our_grad, their_grad, atol=2e-4, rtol=2e-4)
    for name, grad in our_grads.items():
        torch.testing.assert_close(grad, their_grads[name], atol=2e-4, rtol=2e-4, msg=name)


@FAMILIES
def test_embeddings_are_the_sum_of_their_tables(config: EncoderConfig) -> None:
    model, batch = build(config), make_batch([7, 11])
    tables = model.embeddings
    rows = []
    for word, position, segment in zip(batch.input_ids, batch.position_ids, batch.token_type_ids, strict=True):
        row = tables.word_embeddings.weight[word]
        if config.position_encoding == "learned":
            row = row + tables.position_embeddings.weight[position + config.position_offset]
        if config.type_vocab_size:
            row = row + tables.token_type_embeddings.weight[segment if config.type_vocab_size > 1 else 0]
        rows.append((row - row.mean()) / (row.var(correction=0) + config.norm_eps).sqrt())
    expected = torch.stack(rows) * tables.norm.weight + (tables.norm.bias if config.norm_bias else 0.0)
    torch.testing.assert_close(model.embed(batch), expected, atol=1e-5, rtol=1e-5)


def test_norms_and_the_residual_stream_stay_fp32_under_bf16_autocast() -> None:
    model, batch = build(MODERN), make_batch([7, 11])
    with torch.autocast("cpu", torch.bfloat16):
        states = model.hidden_states(batch)
    assert {state.dtype for state in states} == {torch.float32}
    exact = model.hidden_states(batch)
    error = (states[-1] - exact[-1]).norm() / exact[-1].norm()
    assert 1e-5 < error < 0.05


def test_long_sequences_use_the_other_kernel_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from framework.nn import attention_backend

    model, batch = build(MODERN), make_batch([20, 33])
    expected = model(batch)
    monkeypatch.setattr(attention_backend, "MAX_LENGTH", 16)
    torch.testing.assert_close(model(batch), expected, atol=1e-4, rtol=1e-4)


def test_reset_buffers_fills_tables_after_the_meta_device() -> None:
    with torch.device("meta"):
        model = TransformerEncoder(MODERN)
    assert not [name for name in model.state_dict() if "rotary" in name]
    model.to_empty(device="cpu")
    expected = TransformerEncoder(MODERN).rotary_tables
    for kind, table in model.rotary_tables.items():
        table.cos.fill_(float("nan"))
        table.reset_buffers()
        assert torch.equal(table.cos, expected[kind].cos) and torch.equal(table.sin, expected[kind].sin)
    assert not torch.equal(expected["global"].cos, expected["local"].cos)
