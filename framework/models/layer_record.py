"""Records what the layers of an encoder compute in a forward pass: hidden states, and queries, keys and values."""

from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from framework.models.encoder import TransformerEncoder
from framework.nn.attention import SelfAttention


@dataclass(frozen=True)
class LayerRecord:
    """Tensors of one forward pass, with their gradients, by the number of the layer, counted from 1.

    Attributes:
        hidden_states: (tokens, hidden) output of a layer. 0 are the embeddings, and the last layer's output is that of
            the encoder, after the final norm.
        projections: (tokens, heads, 3, head_dim) queries, keys and values, before rotary positions.
    """

    hidden_states: dict[int, Tensor] = field(default_factory=dict)
    projections: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def record_layers(
    encoder: TransformerEncoder, hidden_states: Iterable[int] = (), projections: Iterable[int] = ()
) -> Iterator[LayerRecord]:
    """Context in which a forward pass of an encoder fills a record, whatever the strategy.

    Layers recompute outside of the context, so a recomputation under activation checkpointing is not recorded. Compiled
    layers are not supported.

    Args:
        encoder: Encoder, sharded or not.
        hidden_states: Layers whose output is recorded.
        projections: Layers whose queries, keys and values are recorded.
    """
    record = LayerRecord()
    handles = []
    for number in hidden_states:
        hook = partial(_keep, record.hidden_states, number)
        handles.append(_source(encoder, number).register_forward_hook(hook))
    for number in projections:
        attention = encoder.layers[number - 1].attention
        assert isinstance(attention, SelfAttention)
        hook = partial(_keep_split, record.projections, number, attention.head_dim)
        handles.append(attention.qkv.register_forward_hook(hook))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _source(encoder: TransformerEncoder, number: int) -> nn.Module:
    """Returns the module whose output is the hidden states of a number."""
    if number == 0:
        return encoder.embeddings
    return encoder.final_norm if number == len(encoder.layers) else encoder.layers[number - 1]


def _keep(kept: MutableMapping[int, Tensor], number: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
    kept[number] = output


def _keep_split(
    kept: MutableMapping[int, Tensor], number: int, head_dim: int, _module: nn.Module, _inputs: Any, output: Tensor
) -> None:
    # With a disentangled bias, the second call of a pass projects relative positions.
    kept.setdefault(number, output.unflatten(-1, (-1, 3, head_dim)))
