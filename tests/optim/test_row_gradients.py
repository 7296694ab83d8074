"""Sparse gradients of word tables against dense ones, bit for bit, from the lookup to the update."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from framework.distributed.parallel.gradient_norm import clip_gradients
from framework.distributed.parallel.loss_scale import LossScale
from framework.distributed.parallel.materialization import use_sparse_gradients
from framework.models.encoder import TransformerEncoder
from framework.nn.dropout import dropout_base, token_keys
from framework.optim.combined import CombinedOptimizer
from framework.optim.parameter_groups import Adam, AdamW, Lamb
from tests.support.models.tiny import make_batch, tiny_config

STEPS, MICRO_BATCHES = 3, 3


def build(settings: Adam, sparse: bool) -> tuple[TransformerEncoder, CombinedOptimizer]:
    torch.manual_seed(0)
    encoder = TransformerEncoder(tiny_config(modern=False))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter)
    if sparse:
        use_sparse_gradients(encoder)
    return encoder, settings.build(encoder.named_parameters(), {}, torch.float32)


def run(settings: Adam, sparse: bool, head: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Trains a few steps of several micro-batches, and returns all weights, optimizer states and norms."""
    encoder, optimizer = build(settings, sparse)
    words = encoder.embeddings.word_embeddings.weight
    norms = []
    for step in range(STEPS):
        for number in range(MICRO_BATCHES):
            batch = make_batch(step, list(range(number, 12, MICRO_BATCHES)))
            hidden_states = encoder(batch, token_keys(dropout_base(1, step, 0), batch))
            (head(hidden_states, words) * 8).sum().backward()
        layout = None if words.grad is None else words.grad.layout
        LossScale(init_scale=8.0).unscale(encoder.parameters())
        norms.append(clip_gradients(encoder.parameters(), 0.5))
        optimizer.step()
        assert words.grad is None or words.grad.layout == layout
        optimizer.zero_grad(set_to_none=True)
    return [*norms, *encoder.parameters(), *optimizer.named_state().values(), torch.tensor(layout == torch.sparse_coo)]


def untied(hidden_states: Tensor, words: Tensor) -> Tensor:
    return hidden_states.sin()


def tied(hidden_states: Tensor, words: Tensor) -> Tensor:
    return (hidden_states @ words.T).sin()


@pytest.mark.parametrize("head", [untied, tied])
@pytest.mark.parametrize("settings", [AdamW(lr=0.01), Lamb(lr=0.01)])
def test_sparse_gradients_give_the_weights_states_and_norms_of_dense_ones(settings: Adam, head: Callable):
    *dense, _ = run(settings, False, head)
    *sparse, is_sparse = run(settings, True, head)
    assert bool(is_sparse) == (head is untied)
    assert len(dense) == len(sparse)
    for expected, actual in zip(dense, sparse, strict=True):
        assert torch.equal(expected, actual)


def test_a_frozen_table_has_no_gradient():
    encoder, _ = build(AdamW(lr=0.01), True)
    words = encoder.embeddings.word_embeddings.weight.requires_grad_(False)
    encoder(make_batch(0, [0, 1])).sum().backward()
    assert words.grad is None
