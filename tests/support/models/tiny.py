"""A tiny encoder with a tied decoder, its data and a plain training loop, to be run under every strategy."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from framework.batch import DUMMY_SEQUENCE_ID, PackedBatch
from framework.distributed.mesh import build_mesh, data_parallel_size, mesh_shape
from framework.distributed.parallel.activation_checkpoint import KEEP_ALL, ActivationCheckpointing
from framework.distributed.parallel.gradient_norm import clip_gradients
from framework.distributed.parallel.materialization import materialize
from framework.distributed.parallel.parallelize import parallelize, set_gradient_sync
from framework.distributed.parallel.precision import Precision
from framework.distributed.parallel.sharding import DEFAULT_SHARDING, Sharding
from framework.distributed.reduce import sum_over_data_ranks
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.cross_entropy import cross_entropy_sum
from framework.nn.dropout import dropout_base, token_keys
from framework.nn.initialization import initial_values
from framework.nn.norm import LayerNorm
from framework.optim.combined import CombinedOptimizer
from framework.optim.parameter_groups import AdamW, Muon

NUM_SEQUENCES = 12
VOCAB_SIZE = 101
"""Vocabulary size that 2, 3 and 4 ranks do not divide."""


def tiny_config(modern: bool) -> EncoderConfig:
    """Returns a BERT of two layers or, if `modern`, a pre-norm encoder with rotary positions and gated feed-forward."""
    modern_keys: dict[str, Any] = {}
    if modern:
        modern_keys = {"position_encoding": "rotary", "norm_placement": "pre", "gated": True, "type_vocab_size": 0}
    return EncoderConfig(
        family="modernbert" if modern else "bert",
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=72,
        max_position_embeddings=32,
        hidden_dropout=0.1,
        **modern_keys,
    )


def set_random_weights(model: nn.Module, seed: int) -> None:
    """Sets large random weights, so that the outputs of a model are far from linear in its inputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.4, generator=generator)


class TiedHead(nn.Module):
    """Head of a linear layer, a norm and a decoder that shares the weight of the word embedding."""

    def __init__(self, encoder: TransformerEncoder, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, 1e-12)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.decoder.weight = encoder.embeddings.word_embeddings.weight

    def forward(self, hidden_states: Tensor, batch: PackedBatch) -> Tensor:
        picked = hidden_states[batch.targets["positions"]]
        return self.decoder(self.norm(functional.gelu(self.dense(picked))))


class TinyModel(nn.Module):
    """Encoder and head as one module."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.encoder = TransformerEncoder(config)
        self.head = TiedHead(self.encoder, config)

    def forward(self, batch: PackedBatch, dropout_keys: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(batch, dropout_keys), batch)


def make_batch(step: int, sequences: list[int]) -> PackedBatch:
    """Packs sequences that are functions of (step, index). Without sequences, the batch holds one dummy sequence."""
    parts, labels, positions, lengths = [], [], [], []
    for index in sequences:
        generator = torch.Generator().manual_seed(1000 * step + index)
        length = int(torch.randint(4, 20, (1,), generator=generator))
        ids = torch.randint(1, VOCAB_SIZE, (length,), generator=generator)
        chosen = torch.randperm(length, generator=generator)[: 1 + length // 5]
        positions.append(chosen + sum(lengths))
        labels.append(ids[chosen])
        parts.append(ids)
        lengths.append(length)
    if not sequences:
        parts, lengths = [torch.ones(1, dtype=torch.long)], [1]
        positions = labels = [torch.zeros(0, dtype=torch.long)]
    ids = torch.cat(parts)
    sequence_ids = [NUM_SEQUENCES * step + index for index in sequences] or [DUMMY_SEQUENCE_ID]
    return PackedBatch(
        input_ids=ids,
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        token_type_ids=torch.zeros_like(ids),
        cu_seqlens=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32),
        sequence_ids=torch.tensor(sequence_ids),
        lengths=tuple(lengths),
        max_seqlen=max(lengths),
        num_sequences=len(sequences),
        num_tokens=len(ids) if sequences else 0,
        targets={"positions": torch.cat(positions), "labels": torch.cat(labels)},
        counts={"mlm": float(sum(len(label) for label in labels))},
    )


def micro_batches(step: int, rank: int, size: int, num_micro_batches: int) -> list[PackedBatch]:
    """Returns a rank's share of a step. With two or more ranks, the last micro-batch of the last rank is empty."""
    share = list(range(rank, NUM_SEQUENCES, size))
    empty = size > 1 and rank == size - 1
    num_filled = num_micro_batches - 1 if empty else num_micro_batches
    return [make_batch(step, share[i::num_filled]) for i in range(num_filled)] + [make_batch(step, [])] * empty


@dataclass
class Tiny:
    """State of one process of a tiny run."""

    model: TinyModel
    optimizer: CombinedOptimizer
    precision: Precision
    mesh: Any
    data_rank: int
    sharding: Sharding = DEFAULT_SHARDING
    num_micro_batches: int = 3
    max_norm: float | None = 1.0

    def gradients(self, step: int) -> Tensor:
        """Runs forward and backward of a step, and returns the loss over all ranks."""
        size = data_parallel_size(self.mesh)
        batches = micro_batches(step, self.data_rank, size, self.num_micro_batches)
        count = sum_over_data_ranks(torch.tensor(sum(batch.counts["mlm"] for batch in batches)), self.mesh)
        total = torch.zeros(())
        for index, batch in enumerate(batches):
            set_gradient_sync(self.model, index == len(batches) - 1, self.sharding)
            with self.precision.autocast("cpu"):
                logits = self.model(batch, token_keys(dropout_base(7, step, 0), batch))
            loss = cross_entropy_sum(logits, batch.targets["labels"]) / count
            (loss * size).backward()
            total += loss.detach()
        return sum_over_data_ranks(total, self.mesh)

    def step(self, step: int) -> tuple[float, float]:
        """Runs one step, and returns the loss and the gradient norm before clipping."""
        loss = self.gradients(step)
        norm = clip_gradients(self.model.parameters(), self.max_norm)
        self.optimizer.set_learning_rates(1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item(), norm.item()

    def evaluate(self, step: int) -> Tensor:
        """Runs a forward pass without gradients, as validation does, and returns the logits."""
        with torch.no_grad(), self.precision.autocast("cpu"):
            return self.model(make_batch(step, [0, 1]))


def build(
    strategy: str,
    modern: bool = False,
    muon: bool = False,
    precision: str = "fp32",
    seed: int = 3,
    checkpointing: ActivationCheckpointing = KEEP_ALL,
    sharding: Sharding = DEFAULT_SHARDING,
) -> Tiny:
    """Builds a tiny run under a strategy, over the ranks of the process group. `hsdp` has two replicas."""
    world_size, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    if strategy == "single":
        world_size, rank = 1, 0
    shape = mesh_shape(strategy, world_size, 2 if strategy == "hsdp" else None, 2 if strategy == "fsdp2_tp" else None)
    mesh = build_mesh(strategy, shape, "cpu")
    config = tiny_config(modern)
    with torch.device("meta"):
        model = TinyModel(config)
    resolved = Precision(precision)
    parallelize(model, mesh, strategy, resolved, checkpointing, sharding)  # type: ignore[arg-type]
    materialize(model, initial_values(model, config, seed), "cpu", "cpu" if sharding.cpu_offload else None)
    adamw = AdamW(lr=2e-3)
    recipe = Muon(adamw=adamw, lr=1e-2) if muon else adamw
    row_parts = {"*.attention.qkv.weight": (config.num_heads, 3)}
    optimizer = recipe.build(model.named_parameters(), row_parts, torch.float32)
    return Tiny(model, optimizer, resolved, mesh, shape.data_parallel_rank(rank), sharding)


def full(tensor: Tensor) -> Tensor:
    """Returns the full tensor of one that may be sharded. Collective: all ranks must call."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def full_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Returns all parameters, unsharded. Collective: all ranks must call."""
    return {name: full(parameter) for name, parameter in model.named_parameters()}


def constant_values(model: nn.Module, value: float) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yields initial values, all equal to `value`."""
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        yield name, lambda shape=shape: torch.full(shape, value)
