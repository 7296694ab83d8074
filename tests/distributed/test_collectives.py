"""The collectives of a step, and the bytes of gradients that it keeps."""

from collections import Counter
from typing import Any

import pytest
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from framework.distributed.parallel.gradient_norm import clip_gradients
from framework.distributed.parallel.parallelize import set_gradient_sync
from framework.distributed.parallel.sharding import Sharding
from framework.nn.dropout import dropout_base, token_keys
from tests.support.models.tiny import Tiny, build, make_batch
from tests.support.processes.collective_trace import CollectiveTrace
from tests.support.processes.workers import WorkerPool

EVERY = Sharding(gradient_sync="every")
NUM_GROUPS = 3
"""Groups of parameters in fp32: two layers and the root; in bf16 the norms are one more."""
NUM_MICRO_BATCHES = 4


def run_step(strategy: str, precision: str, sharding: Sharding) -> tuple[Counter[str], int]:
    """Returns the collectives of a step, and the number of elements that all of its gathers produce."""
    tiny = build(strategy, precision=precision, sharding=sharding)
    tiny.num_micro_batches = NUM_MICRO_BATCHES
    with CollectiveTrace() as trace:
        tiny.gradients(0)
    return trace.counts, sum(call.numel for call in trace.calls if call.name == "allgather_base")


def step(workers: WorkerPool, world_size: int, strategy: str, sharding: Sharding, precision: str = "fp32") -> Any:
    return workers.run(run_step, world_size, strategy, precision, sharding)[0]


# Two all-reduces in each count are those of the number of targets and of the loss.


def test_ddp_reduces_each_group_once_a_step(workers: WorkerPool) -> None:
    assert step(workers, 2, "ddp", Sharding())[0] == {"allreduce": NUM_GROUPS + 2}


@pytest.mark.parametrize(("precision", "num_groups"), [("fp32", NUM_GROUPS), ("bf16", NUM_GROUPS + 1)])
def test_fsdp2_reduces_each_group_once_a_step_or_with_every_micro_batch(
    workers: WorkerPool, precision: str, num_groups: int
) -> None:
    # Each layer is gathered before its forward and its backward of each micro-batch; root and norms once per step.
    gathers = 2 * 2 * NUM_MICRO_BATCHES + num_groups - 2
    last, every = (step(workers, 2, "fsdp2", each, precision)[0] for each in (Sharding(), EVERY))
    assert last == {"reduce_scatter_base": num_groups, "allgather_base": gathers, "allreduce": 2}
    assert every == {
        "reduce_scatter_base": num_groups * NUM_MICRO_BATCHES,
        "allgather_base": gathers,
        "allreduce": 2,
    }


def test_hsdp_averages_over_copies_once_a_step_in_either_case(workers: WorkerPool) -> None:
    last, every = (step(workers, 4, "hsdp", each)[0] for each in (Sharding(), EVERY))
    assert (last["reduce_scatter_base"], last["allreduce"]) == (NUM_GROUPS, NUM_GROUPS + 2)
    assert (every["reduce_scatter_base"], every["allreduce"]) == (NUM_GROUPS * NUM_MICRO_BATCHES, NUM_GROUPS + 2)


def test_layers_that_stay_gathered_are_gathered_once_a_step(workers: WorkerPool) -> None:
    for sharding in (
        Sharding(reshard_after_forward=False),
        Sharding(reshard_after_forward=False, gradient_sync="every"),
    ):
        assert step(workers, 2, "fsdp2", sharding)[0]["allgather_base"] == NUM_GROUPS


def test_a_tied_weight_is_gathered_once(workers: WorkerPool) -> None:
    model = build("single").model
    # Rows are padded to a multiple of the two ranks.
    padded = {name: 2 * -(-weight.shape[0] // 2) * weight[0].numel() for name, weight in model.named_parameters()}
    in_layers = sum(numel for name, numel in padded.items() if name.startswith("encoder.layers."))
    rest = sum(padded.values()) - in_layers
    assert model.head.decoder.weight is model.encoder.embeddings.word_embeddings.weight
    assert step(workers, 2, "fsdp2", Sharding())[1] == rest + 2 * NUM_MICRO_BATCHES * in_layers


def micro_step(tiny: Tiny, index: int, is_last: bool) -> None:
    batch = make_batch(0, [index])
    set_gradient_sync(tiny.model, is_last, tiny.sharding)
    with tiny.precision.autocast("cpu"):
        logits = tiny.model(batch, token_keys(dropout_base(7, 0, 0), batch))
    logits.float().square().sum().backward()


def gradient_bytes(model: nn.Module) -> int:
    """Returns the bytes of all gradients of a rank: whole ones, shards, and sums over shards that copies still lack."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor | None) -> None:
        if tensor is not None:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()

    for module in model.modules():
        if isinstance(module, FSDPModule) and (group := module._get_fsdp_state()._fsdp_param_group) is not None:
            keep(group._partial_reduce_output)
            for each in group.fsdp_params:
                keep(each.unsharded_accumulated_grad)
                keep(each._unsharded_param.grad)
                keep(None if each.sharded_param.grad is None else each.sharded_param.grad.to_local())
    return sum(kept.values())


def run_bytes(strategy: str, sharding: Sharding) -> list[int]:
    """Returns the bytes of gradients after a micro-batch that is not the last, and after the last."""
    tiny = build(strategy, sharding=sharding)
    found = []
    for is_last in (False, True):
        micro_step(tiny, int(is_last), is_last)
        found.append(gradient_bytes(tiny.model))
    return found


@pytest.mark.parametrize("strategy", ["fsdp2", "hsdp"])
def test_every_keeps_only_the_shards_of_the_gradients(workers: WorkerPool, strategy: str) -> None:
    num_shards = 4 if strategy == "fsdp2" else 2
    parameters = list(build("single").model.parameters())
    whole = 4 * sum(weight.numel() for weight in parameters)
    # Rows are padded to a multiple of the shards.
    shard = 4 * sum(-(-weight.shape[0] // num_shards) * weight[0].numel() for weight in parameters)
    assert shard == pytest.approx(whole / num_shards, rel=0.01)
    assert workers.run(run_bytes, 4, strategy, EVERY) == [[shard, shard]] * 4
    assert workers.run(run_bytes, 4, strategy, Sharding()) == [[whole, shard]] * 4


def clipping(strategy: str) -> Counter[str]:
    tiny = build(strategy)
    tiny.gradients(0)
    with CollectiveTrace() as trace:
        clip_gradients(tiny.model.parameters(), 1.0)
    return trace.counts


@pytest.mark.parametrize(
    ("strategy", "world_size", "expected"),
    [("ddp", 2, 0), ("fsdp2", 2, 1), ("hsdp", 4, 1), ("tp", 2, 1), ("fsdp2_tp", 4, 1)],
)
def test_clipping_adds_one_all_reduce_if_weights_are_sharded(
    workers: WorkerPool, strategy: str, world_size: int, expected: int
) -> None:
    assert [counts["allreduce"] for counts in workers.run(clipping, world_size, strategy)] == [expected] * world_size


def run_order(sharding: Sharding, precision: str) -> list[str]:
    """Returns the gathers of one forward and backward, in order with the calls of embeddings, layers and head."""
    tiny = build("fsdp2", precision=precision, sharding=sharding)
    trace = CollectiveTrace()
    encoder = tiny.model.encoder
    parts = {
        "embeddings": encoder.embeddings.word_embeddings,
        "layer 0": encoder.layers[0],
        "layer 1": encoder.layers[1],
    }
    for name, module in parts.items():
        module.register_forward_pre_hook(lambda *_, name=name: trace.note(name))
    for name, module in (("layer 0", encoder.layers[0]), ("layer 1", encoder.layers[1]), ("head", tiny.model)):
        module.register_forward_hook(
            lambda _, args, output, name=name: output.register_hook(lambda _: trace.note(f"{name} back")) and None
        )
    with trace:
        micro_step(tiny, 0, True)
    return ["gather" if event == "allgather_base" else event for event in trace.events if "reduce" not in event]


FORWARD = {
    None: ["gather", "embeddings", "gather", "layer 0", "gather", "layer 1"],
    1: ["gather", "gather", "embeddings", "gather", "layer 0", "layer 1"],
    2: ["gather", "gather", "gather", "embeddings", "layer 0", "layer 1"],
}
"""Number of gathers, by the layers gathered ahead; the first gather is the root's."""
BACKWARD = {
    None: ["gather", "head back", "gather", "layer 1 back", "layer 0 back"],
    1: ["gather", "head back", "gather", "layer 1 back", "layer 0 back"],
    2: ["gather", "gather", "head back", "layer 1 back", "layer 0 back"],
}


@pytest.mark.parametrize(("forward", "backward"), [(None, None), (1, None), (2, 1), (None, 2)])
def test_weights_are_gathered_as_far_ahead_as_configured(
    workers: WorkerPool, forward: int | None, backward: int | None
) -> None:
    sharding = Sharding(forward_prefetch=forward, backward_prefetch=backward)
    assert workers.run(run_order, 2, sharding, "fp32")[0] == FORWARD[forward] + BACKWARD[backward]


def test_the_norms_are_gathered_ahead_too(workers: WorkerPool) -> None:
    found = workers.run(run_order, 2, Sharding(forward_prefetch=1), "bf16")[0]
    assert found[:4] == ["gather", "gather", "gather", "embeddings"]
