"""One model under every strategy: weights, losses, gradients, precision."""

import pytest
import torch
from torch import Tensor, nn

from framework.distributed.parallel.materialization import materialize
from framework.nn.initialization import initial_values
from tests.support.models.tiny import TinyModel, build, constant_values, full, full_parameters, tiny_config
from tests.support.processes.collective_trace import CollectiveTrace
from tests.support.processes.workers import WorkerPool


def run_parameters(strategy: str) -> dict[str, Tensor]:
    return full_parameters(build(strategy, modern=True).model)


def run_local_rows(strategy: str) -> int:
    parameter = build(strategy).model.get_parameter("encoder.embeddings.word_embeddings.weight")
    return parameter.to_local().shape[0]  # type: ignore[operator]


def run_gradients_of_two_iterations(strategy: str) -> int:
    """Returns the number of gradients that differ in any bit between iteration 0 and 1 on the same data."""
    tiny = build(strategy)
    results = []
    for _ in range(2):
        tiny.gradients(0)
        results.append([full(parameter.grad) for parameter in tiny.model.parameters()])
        tiny.optimizer.zero_grad(set_to_none=True)
    return sum(not torch.equal(first, second) for first, second in zip(*results, strict=True))


def run_dtypes(strategy: str) -> dict[str, set[str]]:
    """Returns dtypes of weights, gradients and state after a bf16 step, and those that norms and linear layers use."""
    tiny = build(strategy, precision="bf16")
    seen: dict[str, set[str]] = {"norm": set(), "linear": set()}
    norm = tiny.model.encoder.layers[0].attention_norm
    linear = tiny.model.encoder.layers[0].feed_forward.up
    norm.register_forward_hook(
        lambda module, args, outputs: seen["norm"].update(
            str(tensor.dtype) for tensor in (module.weight, *(outputs if isinstance(outputs, tuple) else (outputs,)))
        )
    )
    linear.register_forward_hook(lambda module, args, output: seen["linear"].add(str(output.dtype)))
    tiny.gradients(0)
    seen["gradients"] = {str(parameter.grad.dtype) for parameter in tiny.model.parameters()}
    tiny.optimizer.step()
    seen["weights"] = {str(parameter.dtype) for parameter in tiny.model.parameters()}
    seen["state"] = {str(value.dtype) for value in tiny.optimizer.named_state().values()}
    return seen


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp2", "hsdp", "tp"])
def test_bf16_keeps_weights_state_and_norms_in_fp32(workers: WorkerPool, strategy: str) -> None:
    seen = (
        run_dtypes("single")
        if strategy == "single"
        else workers.run(run_dtypes, 4 if strategy == "hsdp" else 2, strategy)[0]
    )
    fp32 = {"torch.float32"}
    assert seen == {"norm": fp32, "linear": {"torch.bfloat16"}, "gradients": fp32, "weights": fp32, "state": fp32}


@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 2), ("ddp", 4), ("fsdp2", 2), ("fsdp2", 4), ("hsdp", 4)])
def test_first_iteration_reduces_in_the_order_of_all_others(
    workers: WorkerPool, strategy: str, world_size: int
) -> None:
    assert workers.run(run_gradients_of_two_iterations, world_size, strategy) == [0] * world_size


def test_initial_weights_are_equal_at_any_world_size(workers: WorkerPool) -> None:
    expected = run_parameters("single")
    for strategy, world_size in (("ddp", 2), ("fsdp2", 1), ("fsdp2", 2), ("fsdp2", 3), ("fsdp2", 4), ("hsdp", 4)):
        for parameters in workers.run(run_parameters, world_size, strategy):
            assert parameters.keys() == expected.keys()
            assert all(torch.equal(parameters[name], expected[name]) for name in expected)


def test_fsdp2_shards_and_ddp_does_not(workers: WorkerPool) -> None:
    assert workers.run(run_local_rows, 4, "fsdp2") == [26, 26, 26, 23]
    assert workers.run(run_local_rows, 2, "ddp") == [101, 101]


def test_hsdp_shards_over_neighbours_and_keeps_two_copies(workers: WorkerPool) -> None:
    assert workers.run(run_local_rows, 4, "hsdp") == [51, 50, 51, 50]


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


def test_offloaded_parameters_are_on_the_host_and_buffers_on_the_device() -> None:
    config = tiny_config(modern=True)
    with torch.device("meta"):
        model = TinyModel(config)
    materialize(model, initial_values(model, config, 0), "meta", "cpu")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}


def test_materialize_rejects_modules_that_would_stay_uninitialized() -> None:
    model = nn.Sequential(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"0\.bias"):
        materialize(model, list(constant_values(model, 1.0))[:1], "cpu")
    model.register_buffer("table", torch.zeros(2, device="meta"))
    with pytest.raises(ValueError, match="reset_buffers"):
        materialize(model, constant_values(model, 1.0), "cpu")


def run_materialize(strategy: str) -> int:
    """Returns the collectives that initializing a model's weights needs."""
    tiny = build(strategy)
    tiny.model.to("meta")
    with CollectiveTrace() as count:
        materialize(tiny.model, initial_values(tiny.model, tiny_config(False), 5), "cpu")
    return len(count.calls)


def test_initial_weights_need_no_communication(workers: WorkerPool) -> None:
    for strategy, world_size in (("ddp", 2), ("fsdp2", 2), ("hsdp", 4)):
        assert workers.run(run_materialize, world_size, strategy) == [0] * world_size
