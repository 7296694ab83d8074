"""StableAdamW and LAMB compared with slow references in NumPy, whole and sharded."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from framework.optim import moments
from framework.optim.combined import CombinedOptimizer
from framework.optim.parameter_groups import Adam, Lamb, StableAdamW
from framework.optim.shards import sum_of_squares, sum_over_shards
from tests.support.processes.workers import WorkerPool

Values = dict[str, NDArray[np.float64]]

# Odd sizes, and norms with fewer rows than ranks.
SHAPES = {
    "embeddings.weight": (7, 4),
    "layers.0.weight": (3, 6),
    "layers.0.bias": (3,),
    "final_norm.weight": (1,),
    "zero.weight": (2, 4),
}
DECAYED = ("embeddings.weight", "layers.0.weight", "zero.weight")
NUM_STEPS = 5
RATE, BETA1, BETA2, EPS, DECAY = 0.05, 0.8, 0.95, 1e-3, 0.1


def start() -> Values:
    generator = np.random.default_rng(1)
    values = {name: generator.standard_normal(shape) for name, shape in SHAPES.items()}
    values["zero.weight"][:] = 0.0
    return values


def gradients(step: int) -> Values:
    """Returns gradients: some grow twentyfold at step 3; the bias has none at step 1; one row is always zero."""
    generator = np.random.default_rng(100 + step)
    found = {name: generator.standard_normal(shape) for name, shape in SHAPES.items()}
    found["embeddings.weight"][2] = 0.0
    if step == 3:
        found["layers.0.weight"] *= 20.0
        found["final_norm.weight"] *= 20.0
    if step == 1:
        del found["layers.0.bias"]
    return found


def by_stable_adamw() -> tuple[Values, list[float]]:
    """Computes algorithm 2 of the paper, with its debiased betas, tensor by tensor; also returns every RMS."""
    values, all_rms = start(), []
    counts = dict.fromkeys(values, 0)
    v = {name: np.zeros_like(value) for name, value in values.items()}
    u = {name: np.zeros_like(value) for name, value in values.items()}
    for step in range(NUM_STEPS):
        for name, g in gradients(step).items():
            counts[name] += 1
            t = counts[name]
            beta1 = BETA1 * (1 - BETA1 ** (t - 1)) / (1 - BETA1**t)
            beta2 = BETA2 * (1 - BETA2 ** (t - 1)) / (1 - BETA2**t)
            v[name] = beta1 * v[name] + (1 - beta1) * g
            u[name] = beta2 * u[name] + (1 - beta2) * g * g
            rms = math.sqrt((g * g / np.maximum(u[name], EPS * EPS)).mean())
            rate = RATE / max(1.0, rms)
            decay = DECAY if name in DECAYED else 0.0
            values[name] = values[name] - rate * decay * values[name] - rate * v[name] / (np.sqrt(u[name]) + EPS)
            all_rms.append(rms)
    return values, all_rms


def by_lamb() -> Values:
    """Computes algorithm 2 of the paper with the identity as phi, without the terms that the released code omits."""
    values = start()
    counts = dict.fromkeys(values, 0)
    m = {name: np.zeros_like(value) for name, value in values.items()}
    v = {name: np.zeros_like(value) for name, value in values.items()}
    for step in range(NUM_STEPS):
        for name, g in gradients(step).items():
            counts[name] += 1
            m[name] = BETA1 * m[name] + (1 - BETA1) * g
            v[name] = BETA2 * v[name] + (1 - BETA2) * g * g
            r = m[name] / (1 - BETA1 ** counts[name]) / (np.sqrt(v[name] / (1 - BETA2 ** counts[name])) + EPS)
            ratio = 1.0
            if name in DECAYED:
                r = r + DECAY * values[name]
                norm = math.sqrt((values[name] ** 2).sum())
                ratio = norm / math.sqrt((r**2).sum()) if norm > 0 else 1.0
            values[name] = values[name] - RATE * ratio * r
    return values


def settings(algorithm: str) -> Adam:
    kind = {"stable_adamw": StableAdamW, "lamb": Lamb}[algorithm]
    return kind(lr=RATE, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY)


def expected(algorithm: str) -> Values:
    return by_lamb() if algorithm == "lamb" else by_stable_adamw()[0]


def make(algorithm: str, sizes: tuple[int, ...], axes: str) -> tuple[dict[str, nn.Parameter], CombinedOptimizer]:
    """Distributes parameters over a mesh ("0" and "1": sharded on that dim, "r": replicated), or returns plain ones."""
    parameters = {}
    mesh = init_device_mesh("cpu", sizes) if sizes else None
    for name, value in start().items():
        tensor = torch.tensor(value, dtype=torch.float32)
        if mesh is not None:
            tensor = distribute_tensor(tensor, mesh, placements(axes, tensor), src_data_rank=None)
        parameters[name] = nn.Parameter(tensor)
    return parameters, settings(algorithm).build(parameters.items(), {}, torch.float32)


def placements(axes: str, tensor: Tensor) -> list[Placement]:
    """Returns the placement of a vector, which is replicated instead of sharded on dim 1, as in tensor parallelism."""
    return [Shard(int(axis)) if axis != "r" and int(axis) < tensor.ndim else Replicate() for axis in axes]


def set_gradients(parameters: dict[str, nn.Parameter], step: int) -> None:
    found = gradients(step)
    for name, parameter in parameters.items():
        parameter.grad = None
        if name in found:
            gradient = torch.tensor(found[name], dtype=torch.float32)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.grad = gradient


def train(algorithm: str, sizes: tuple[int, ...], axes: str) -> dict[str, Tensor]:
    """Makes all steps; returns the full parameters after them."""
    parameters, optimizer = make(algorithm, sizes, axes)
    for step in range(NUM_STEPS):
        set_gradients(parameters, step)
        optimizer.step()
    return {
        name: (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().clone()
        for name, parameter in parameters.items()
    }


def assert_equal(found: dict[str, Tensor], algorithm: str) -> None:
    for name, value in expected(algorithm).items():
        torch.testing.assert_close(
            found[name].double(),
            torch.tensor(value),
            rtol=2e-6,
            atol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("algorithm", ["stable_adamw", "lamb"])
@pytest.mark.parametrize("block_elements", [1, 9, 1 << 17])
def test_updates_equal_the_paper(algorithm: str, block_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(moments._BLOCK_ELEMENTS, "cpu", block_elements)
    assert_equal(train(algorithm, (), ""), algorithm)


def test_blocks_are_rows_of_a_tensor_or_several_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(moments._BLOCK_ELEMENTS, "cpu", 9)
    parameters, optimizer = make("lamb", (), "")
    set_gradients(parameters, 0)
    _, blocks = moments.advance(optimizer.param_groups, optimizer.state)
    # Decayed: 7 x 4 in pairs of rows, then 3 x 6 and 2 x 4 by rows; not decayed: 3 and 1 together.
    assert [[list(weight.shape) for weight in block.weights] for block in blocks] == [
        *[[[2, 4], [2, 4]], [[2, 4], [1, 4]]],
        *[[[1, 6], [1, 6]], [[1, 6], [2, 4]]],
        [[3], [1]],
    ]


def test_the_reference_clips_some_updates_and_not_others() -> None:
    _, all_rms = by_stable_adamw()
    assert max(all_rms) > 1.5 and min(all_rms) < 0.8


@pytest.mark.parametrize("algorithm", ["stable_adamw", "lamb"])
@pytest.mark.parametrize(("sizes", "axes"), [((2,), "0"), ((2,), "r"), ((2, 2), "r0"), ((2, 2), "01"), ((2, 2), "00")])
def test_shards_equal_one_process(workers: WorkerPool, algorithm: str, sizes: tuple[int, ...], axes: str) -> None:
    for found in workers.run(train, math.prod(sizes), algorithm, sizes, axes):
        assert_equal(found, algorithm)


def all_reduces(algorithm: str, axes: str) -> int:
    """Returns how often one step of four tensors or more calls a collective."""
    parameters, optimizer = make(algorithm, (2,), axes)
    set_gradients(parameters, 0)
    calls = []
    original = dist.all_reduce

    def counting(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return original(*args, **kwargs)  # type: ignore[arg-type]

    dist.all_reduce = counting  # type: ignore[assignment]
    try:
        optimizer.step()
    finally:
        dist.all_reduce = original
    return len(calls)


def test_a_large_tensor_loses_no_precision_in_its_sum() -> None:
    values = np.random.default_rng(0).standard_normal((20_000, 256), dtype=np.float32)
    whole = np.square(values.astype(np.float64)).sum()
    assert sum_of_squares(torch.from_numpy(values)).item() == pytest.approx(whole, rel=1e-8)


def sum_of_strided_shards() -> float:
    """Places one element on each of four ranks, as two axes on one dim do (data parallel over tensor parallel)."""
    mesh = init_device_mesh("cpu", (2, 2))
    strided = [_StridedShard(0, split_factor=2), Shard(0)]
    parameter = DTensor.from_local(torch.ones(1), mesh, strided, shape=torch.Size([4]), stride=(1,))
    return sum_over_shards(torch.ones(1, 1), [parameter]).item()


def test_both_axes_on_one_dim_are_summed_over(workers: WorkerPool) -> None:
    assert workers.run(sum_of_strided_shards, 4) == [4.0] * 4


@pytest.mark.parametrize("algorithm", ["stable_adamw", "lamb"])
def test_a_step_needs_one_all_reduce_and_none_for_replicas(workers: WorkerPool, algorithm: str) -> None:
    assert workers.run(all_reduces, 2, algorithm, "0") == [1, 1]
    assert workers.run(all_reduces, 2, algorithm, "r") == [0, 0]


def test_a_trust_ratio_applies_to_decayed_parameters_for_any_decay() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    bias = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Lamb(lr=0.1, eps=0.0, weight_decay=0.0).build(
        {"weight": weight, "bias": bias}.items(), {}, torch.float32
    )
    weight.grad, bias.grad = torch.ones(1, 2), torch.ones(2)
    optimizer.step()
    # Adam's first direction is 1 everywhere: its norm is sqrt(2), the weight's is 5.
    torch.testing.assert_close(weight.detach(), torch.tensor([[3.0, 4.0]]) - 0.1 * 5.0 / math.sqrt(2.0))
    torch.testing.assert_close(bias.detach(), torch.tensor([2.9, 3.9]))
