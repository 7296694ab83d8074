"""One model under every strategy: weights, losses, gradients, precision."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from framework.distributed.parallelize import materialize
from framework.nn.initialization import initial_values
from tests.distributed.tiny import Tiny, TinyModel, build, constant_values, full, full_parameters, tiny_config
from tests.workers import WorkerPool

NUM_STEPS = 4
Curve = list[tuple[float, float]]


def curve(tiny: Tiny) -> Curve:
    """Losses and norms; a validation pass in between must change nothing."""
    values = []
    for step in range(NUM_STEPS):
        values.append(tiny.step(step))
        if step == 1:
            tiny.evaluate(step)
    return values


def run_curve(strategy: str, modern: bool, muon: bool, precision: str, num_micro_batches: int) -> Curve:
    tiny = build(strategy, modern, muon, precision)
    tiny.num_micro_batches = num_micro_batches
    return curve(tiny)


def run_parameters(strategy: str) -> dict[str, Tensor]:
    return full_parameters(build(strategy, modern=True).model)


def run_local_rows(strategy: str) -> int:
    parameter = build(strategy).model.get_parameter("encoder.embeddings.word_embeddings.weight")
    return parameter.to_local().shape[0]  # type: ignore[operator]


def run_gradients_of_two_iterations(strategy: str) -> int:
    """How many gradients differ in any bit between iteration 0 and 1 on the same data."""
    tiny = build(strategy)
    results = []
    for _ in range(2):
        tiny.gradients(0)
        results.append([full(parameter.grad) for parameter in tiny.model.parameters()])
        tiny.optimizer.zero_grad(set_to_none=True)
    return sum(not torch.equal(first, second) for first, second in zip(*results, strict=True))


def run_dtypes(strategy: str) -> dict[str, set[str]]:
    """Dtypes of weights, gradients and state after a bf16 step, and of what norms and linear maps compute with."""
    tiny = build(strategy, precision="bf16")
    seen: dict[str, set[str]] = {"norm": set(), "linear": set()}
    norm = tiny.model.encoder.layers[0].attention_norm
    linear = tiny.model.encoder.layers[0].feed_forward.up
    norm.register_forward_hook(
        lambda module, args, output: seen["norm"].update({str(module.weight.dtype), str(output.dtype)})
    )
    linear.register_forward_hook(lambda module, args, output: seen["linear"].add(str(output.dtype)))
    tiny.gradients(0)
    seen["gradients"] = {str(parameter.grad.dtype) for parameter in tiny.model.parameters()}
    tiny.optimizer.step()
    seen["weights"] = {str(parameter.dtype) for parameter in tiny.model.parameters()}
    seen["state"] = {str(value.dtype) for value in tiny.optimizer.named_state().values()}
    return seen


@pytest.mark.parametrize("muon", [False, True], ids=["adamw", "muon"])
@pytest.mark.parametrize("modern", [False, True], ids=["bert", "modern"])
def test_losses_and_norms_equal_one_process(workers: WorkerPool, modern: bool, muon: bool) -> None:
    expected = run_curve("single", modern, muon, "fp32", 1)
    assert torch.allclose(torch.tensor(run_curve("single", modern, muon, "fp32", 4)), torch.tensor(expected), rtol=1e-6)
    for strategy, world_size in (("ddp", 2), ("fsdp2", 2), ("fsdp2", 3)):
        ranks = workers.run(run_curve, world_size, strategy, modern, muon, "fp32", 3)
        assert all(rank == ranks[0] for rank in ranks), "ranks disagree"
        torch.testing.assert_close(torch.tensor(ranks[0]), torch.tensor(expected), rtol=1e-6, atol=0)


def test_bf16_is_one_model_under_every_strategy(workers: WorkerPool) -> None:
    exact = torch.tensor(run_curve("single", False, False, "fp32", 1))[:, 0]
    single = torch.tensor(run_curve("single", False, False, "bf16", 1))[:, 0]
    ddp = torch.tensor(workers.run(run_curve, 2, "ddp", False, False, "bf16", 3)[0])[:, 0]
    fsdp2 = torch.tensor(workers.run(run_curve, 2, "fsdp2", False, False, "bf16", 3)[0])[:, 0]
    for losses in (exact, ddp, fsdp2):
        torch.testing.assert_close(losses, single, rtol=0, atol=1e-2)
    assert not torch.equal(exact, single)
    assert not torch.equal(exact, fsdp2)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp2"])
def test_bf16_keeps_weights_state_and_norms_in_fp32(workers: WorkerPool, strategy: str) -> None:
    seen = run_dtypes("single") if strategy == "single" else workers.run(run_dtypes, 2, strategy)[0]
    fp32 = {"torch.float32"}
    assert seen == {"norm": fp32, "linear": {"torch.bfloat16"}, "gradients": fp32, "weights": fp32, "state": fp32}


@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 2), ("ddp", 4), ("fsdp2", 2), ("fsdp2", 4)])
def test_first_iteration_reduces_in_the_order_of_all_others(
    workers: WorkerPool, strategy: str, world_size: int
) -> None:
    assert workers.run(run_gradients_of_two_iterations, world_size, strategy) == [0] * world_size


def test_initial_weights_are_equal_at_any_world_size(workers: WorkerPool) -> None:
    expected = run_parameters("single")
    for strategy, world_size in (("ddp", 2), ("fsdp2", 1), ("fsdp2", 2), ("fsdp2", 3), ("fsdp2", 4)):
        for parameters in workers.run(run_parameters, world_size, strategy):
            assert parameters.keys() == expected.keys()
            assert all(torch.equal(parameters[name], expected[name]) for name in expected)


def test_fsdp2_shards_and_ddp_does_not(workers: WorkerPool) -> None:
    assert workers.run(run_local_rows, 4, "fsdp2") == [26, 26, 26, 23]
    assert workers.run(run_local_rows, 2, "ddp") == [101, 101]


def test_materialize_keeps_ties_and_fills_buffers() -> None:
    config = tiny_config(modern=True)
    with torch.device("meta"):
        model = TinyModel(config)
    materialize(model, initial_values(model, config, 0), "cpu")
    assert model.head.decoder.weight is model.encoder.embeddings.word_embeddings.weight
    reference = TinyModel(config)
    for (name, buffer), (_, expected) in zip(model.named_buffers(), reference.named_buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert len(list(model.buffers())) > 0


def test_materialize_refuses_what_would_stay_uninitialised() -> None:
    model = nn.Sequential(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"0\.bias"):
        materialize(model, list(constant_values(model, 1.0))[:1], "cpu")
    model.register_buffer("table", torch.zeros(2, device="meta"))
    with pytest.raises(ValueError, match="reset_buffers"):
        materialize(model, constant_values(model, 1.0), "cpu")


class CollectiveCount(TorchDispatchMode):
    """Counts the process group's operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.calls[func._schema.name.removeprefix("c10d::").strip("_")] += 1
        return func(*args, **(kwargs or {}))


def run_materialize(strategy: str) -> int:
    """Collectives that giving a model its weights takes."""
    tiny = build(strategy)
    tiny.model.to("meta")
    with CollectiveCount() as count:
        materialize(tiny.model, initial_values(tiny.model, tiny_config(False), 5), "cpu")
    return count.calls.total()


def test_initial_weights_take_no_communication(workers: WorkerPool) -> None:
    for strategy in ("ddp", "fsdp2"):
        assert workers.run(run_materialize, 2, strategy) == [0, 0]


def run_collectives(strategy: str, precision: str) -> Counter[str]:
    """Collectives of a step of three micro-batches."""
    tiny = build(strategy, precision=precision)
    with CollectiveCount() as count:
        tiny.gradients(0)
    return count.calls


def test_gradients_are_reduced_once_a_step(workers: WorkerPool) -> None:
    # Groups: two layers and the root; in bf16 one more for the norms. Two all-reduces are those of count and loss.
    fsdp2 = {precision: workers.run(run_collectives, 2, "fsdp2", precision)[0] for precision in ("fp32", "bf16")}
    assert fsdp2["fp32"]["reduce_scatter_base"] == 3 and fsdp2["bf16"]["reduce_scatter_base"] == 4
    assert fsdp2["fp32"]["allreduce"] == fsdp2["bf16"]["allreduce"] == 2
    # Each layer before its forward and its backward in three micro-batches; root and norms once a step.
    assert fsdp2["fp32"]["allgather_base"] == 13 and fsdp2["bf16"]["allgather_base"] == 14
    assert workers.run(run_collectives, 2, "ddp", "fp32")[0] == {"allreduce": 3 + 2}
