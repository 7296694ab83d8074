"""The strategies inside Lightning's Trainer give the results of a plain loop."""

import os

import pytest
import torch.distributed as dist

from framework.distributed.mesh import MeshShape, mesh_shape
from framework.distributed.processes.process_group import process_group
from framework.errors import ConfigError, DistributedError
from tests.support.models.tiny import build
from tests.support.models.tiny_trainer import NUM_STEPS, Curve, run_trainer
from tests.support.processes.workers import WorkerPool


def run_plain(strategy: str) -> Curve:
    tiny = build(strategy)
    return [tiny.step(step) for step in range(NUM_STEPS)]


def run_with_a_group_of_its_own() -> tuple[bool, bool]:
    """Trains in a process without torchrun, with a group of one, which is destroyed afterwards."""
    dist.destroy_process_group()
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    with process_group("fsdp2", "cpu", 30.0):
        inside = dist.is_initialized()
        build("fsdp2").step(0)
    outside = dist.is_initialized()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return inside, outside


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp2"])
def test_trainer_equals_the_plain_loop(workers: WorkerPool, strategy: str) -> None:
    if strategy == "single":
        results, plain = [run_trainer("single")], run_plain("single")
    else:
        results, plain = workers.run(run_trainer, 2, strategy), workers.run(run_plain, 2, strategy)[0]
    for curve, validated_at, global_step in results:
        assert curve == plain
        assert validated_at == [2, 4]
        assert global_step == NUM_STEPS


def test_process_group_of_one(workers: WorkerPool) -> None:
    assert workers.run(run_with_a_group_of_its_own, 1) == [(True, False)]


def test_single_needs_no_process_group() -> None:
    with process_group("single", "cpu", 30.0):
        assert not dist.is_initialized()


def test_wrong_strategies_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"strategy=zero3 is unknown\. Use one of single, ddp, fsdp2, hsdp, tp, fsdp2_tp"
    ):
        mesh_shape("zero3", 1)
    with pytest.raises(ConfigError, match="strategy=single cannot run in 2 processes"):
        mesh_shape("single", 2)


def test_a_tensor_parallel_size_that_does_not_fit_is_named() -> None:
    with pytest.raises(
        ConfigError,
        match=r"is 3. It must divide .*, which is 8. The nearest is strategy.tensor_parallel_size=2, of 1, 2",
    ):
        mesh_shape("fsdp2_tp", 8, tensor_parallel_size=3)
    with pytest.raises(
        ConfigError, match=r"tensor_parallel_size is 4. With strategy=tp all 8 processes .* Use strategy=fsdp2_tp"
    ):
        mesh_shape("tp", 8, tensor_parallel_size=4)
    with pytest.raises(
        ConfigError, match=r"tensor_parallel_size` is 2, but strategy=ddp does not use it\. .* use strategy=fsdp2_tp"
    ):
        mesh_shape("ddp", 8, tensor_parallel_size=2)


def test_a_number_of_copies_that_does_not_fit_is_named_with_the_nearest() -> None:
    for copies, nearest in ((3, 2), (20, 16), (32, 16)):
        with pytest.raises(ConfigError, match=rf"replicate_size` is {copies}.*strategy.replicate_size={nearest}\b"):
            mesh_shape("hsdp", 32, replicate_size=copies)


def test_neighbouring_ranks_share_products_and_read_the_same_data() -> None:
    assert mesh_shape("tp", 4) == MeshShape(shard=1, tensor=4)
    shape = mesh_shape("fsdp2_tp", 8, tensor_parallel_size=2)
    assert shape == MeshShape(shard=4, tensor=2) and shape.data_parallel_size == 4
    assert [shape.data_parallel_rank(rank) for rank in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_trainer_without_a_process_group_is_rejected() -> None:
    with pytest.raises(DistributedError, match="no process group"):
        run_trainer("fsdp2")
