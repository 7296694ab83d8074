"""Tensor parallel gives the results of one process: weights, logits, losses, gradient norms; and its collectives."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from framework.nn.dropout import dropout_base, token_keys
from tests.support.models.tiny import VOCAB_SIZE, Tiny, build, full, full_parameters, make_batch
from tests.support.processes.collective_trace import CollectiveTrace
from tests.support.processes.workers import WorkerPool

NUM_STEPS = 20
NUM_LAYERS = 2
Curve = list[tuple[float, float]]
SHAPES = [("tp", 2), ("tp", 4), ("fsdp2_tp", 4)]


def run_parameters(strategy: str) -> dict[str, Tensor]:
    return full_parameters(build(strategy, modern=True).model)


def run_local_shapes(strategy: str) -> dict[str, tuple[int, ...]]:
    model = build(strategy, modern=True).model
    assert model.head.decoder.weight is model.encoder.embeddings.word_embeddings.weight
    return {
        name: tuple(p.to_local().shape if isinstance(p, DTensor) else p.shape) for name, p in model.named_parameters()
    }


def logits_of(tiny: Tiny) -> Tensor:
    """Returns the weights after the last step of a run with dropout."""
    batch = make_batch(NUM_STEPS, [0, 1, 2])
    with torch.no_grad(), tiny.precision.autocast("cpu"):
        return full(tiny.model(batch, token_keys(dropout_base(7, NUM_STEPS, 0), batch))).float()


def run_curve(strategy: str, modern: bool) -> tuple[Curve, Tensor, dict[str, Tensor]]:
    """Returns losses and norms, then logits, then the weights that every rank of tensor parallel has completely."""
    tiny = build(strategy, modern)
    curve = [tiny.step(step) for step in range(NUM_STEPS)]
    whole = {
        name: full(parameter)
        for name, parameter in tiny.model.named_parameters()
        if not isinstance(parameter, DTensor) or "tp" not in (parameter.device_mesh.mesh_dim_names or ())
    }
    return curve, logits_of(tiny), whole


def run_collectives(strategy: str, modern: bool) -> Counter[str]:
    """Returns the collectives of a step of one micro-batch."""
    tiny = build(strategy, modern)
    tiny.num_micro_batches = 1
    with CollectiveTrace() as trace:
        tiny.gradients(0)
    return trace.counts


@pytest.mark.parametrize(("strategy", "world_size"), SHAPES)
def test_initial_weights_are_those_of_one_process(workers: WorkerPool, strategy: str, world_size: int) -> None:
    expected = run_parameters("single")
    for parameters in workers.run(run_parameters, world_size, strategy):
        assert parameters.keys() == expected.keys()
        assert all(torch.equal(parameters[name], expected[name]) for name in expected)


def test_each_rank_holds_its_part_of_heads_channels_and_words(workers: WorkerPool) -> None:
    ranks = workers.run(run_local_shapes, 4, "tp")
    words = "encoder.embeddings.word_embeddings.weight"
    assert [rank[words] for rank in ranks] == [(26, 32), (26, 32), (26, 32), (23, 32)]
    assert [rank["head.decoder.bias"] for rank in ranks] == [(26,), (26,), (26,), (23,)]
    layer = {name.removeprefix("encoder.layers.0."): shape for name, shape in ranks[3].items()}
    # Four heads of 8; 72 intermediate channels.
    assert layer["attention.qkv.weight"] == (3 * 8, 32) and layer["attention.qkv.bias"] == (3 * 8,)
    assert layer["attention.output.weight"] == (32, 8) and layer["attention.output.bias"] == (32,)
    assert layer["feed_forward.gate.weight"] == layer["feed_forward.up.weight"] == (18, 32)
    assert layer["feed_forward.down.weight"] == (32, 18) and layer["feed_forward_norm.weight"] == (32,)
    # Two parts of 51 and 50 rows, each in halves.
    both = workers.run(run_local_shapes, 4, "fsdp2_tp")
    assert [rank[words] for rank in both] == [(26, 32), (25, 32), (25, 32), (25, 32)]


@pytest.mark.parametrize("modern", [False, True], ids=["bert", "modern"])
def test_losses_norms_and_logits_equal_one_process(workers: WorkerPool, modern: bool) -> None:
    curve, logits, _ = run_curve("single", modern)
    assert logits.shape[1] == VOCAB_SIZE and logits.std() > 0.1
    for strategy, world_size in SHAPES:
        ranks = workers.run(run_curve, world_size, strategy, modern, timeout=400.0)
        torch.testing.assert_close(torch.tensor(ranks[0][0]), torch.tensor(curve), rtol=1e-5, atol=0)
        torch.testing.assert_close(ranks[0][1], logits, rtol=0, atol=1e-5)
        for other_curve, other_logits, whole in ranks[1:]:
            assert other_curve == ranks[0][0] and torch.equal(other_logits, ranks[0][1])
            assert len(whole) > 10 and all(torch.equal(whole[name], ranks[0][2][name]) for name in whole)


@pytest.mark.parametrize("modern", [False, True], ids=["bert", "modern"])
def test_each_block_needs_one_sum_over_ranks_forward_and_backward(workers: WorkerPool, modern: bool) -> None:
    # Forward: word embeddings and two blocks per layer. Backward: the decoder's input and two blocks per layer.
    expected = {"all_reduce": 2 * (1 + 2 * NUM_LAYERS), "all_gather_into_tensor": 1}
    assert workers.run(run_collectives, 2, "tp", modern) == [expected, expected]
