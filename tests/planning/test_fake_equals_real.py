"""A step on fake tensors and fake ranks does what the same step does on real ranks."""

import os
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from framework.batch import StepBatch
from framework.data.planning.plan import StepPlan
from framework.distributed.mesh import build_mesh, mesh_shape
from framework.distributed.parallel.sharding import DEFAULT_SHARDING, Sharding
from framework.distributed.processes.environment import ProcessInfo, process_info
from framework.modules.encoder_module import EncoderModule
from framework.nn.attention_cpu import _kept_groups
from framework.nn.lora import LoraSettings
from framework.optim.parameter_groups import AdamW, Lamb, Muon
from framework.planning.fake_world import fake_process_group
from framework.planning.step_record import RecordedModule, StepRecord, small_heap
from tests.support.needs import slow
from tests.support.processes.workers import WorkerPool
from tests.support.training.toy_run import CONFIG, SEED, ToySource, build_module

CPU = torch.device("cpu")
FOUR_HEADS = replace(CONFIG, num_heads=4)


def module_of(kind: str) -> EncoderModule:
    sharding = Sharding(gradient_sync="every") if kind == "every" else DEFAULT_SHARDING
    adapter = LoraSettings(2, 4.0, ("query", "value")) if kind == "lora" else None
    average = 0.9 if kind == "ema" else None
    module = build_module(ema_decay=average, adapter=adapter, sharding=sharding, config=FOUR_HEADS)
    settings = {"muon": Muon(AdamW(lr=0.01), lr=0.01), "lamb": Lamb(lr=0.01)}.get(kind)
    if settings is not None:
        module.build_optimizer = lambda model: settings.build(model.named_parameters(), {}, torch.float32)
    return module


def recorded(kind: str, strategy: str, info: ProcessInfo, is_fake: bool) -> StepRecord:
    copies = {"hsdp": info.world_size // 2}.get(strategy)  # of two ranks: one copy in two shards
    tensor = {"fsdp2_tp": 2}.get(strategy)
    shape = mesh_shape(strategy, info.world_size, copies, tensor)
    mesh = build_mesh(strategy, shape, "cpu")
    plan = StepPlan(ToySource(37), SEED, 12, 24, shape.data_parallel_size, wraps_epochs=True)
    step = StepBatch(0, 0, tuple(plan.batches(0, shape.data_parallel_rank(info.rank))))
    assert len(step.micro_batches) > 1
    return RecordedModule(module_of(kind), strategy, mesh, CPU, info.local_world_size, is_fake=is_fake).record(step)


def recorded_on_real_ranks(kind: str, strategy: str, info: ProcessInfo) -> StepRecord:
    """Records a step; again if a thread of gloo freed a buffer of the step later than before, which moves the peak."""
    for _ in range(5):
        record, is_equal = None, torch.ones(1)
        _kept_groups.cache_clear()  # a cache that an earlier step has filled is not memory of this one
        try:
            record = recorded(kind, strategy, info, False)
        except RuntimeError as error:
            if "Equal steps must allocate equal memory" not in str(error):
                raise
            is_equal.zero_()
        dist.all_reduce(is_equal, dist.ReduceOp.MIN)
        if record is not None and is_equal:
            return record
    raise AssertionError("The peak moved in five steps.")


def both(strategy: str, *kinds: str) -> list[tuple[StepRecord, StepRecord]]:
    """Returns the records of real and of fake ranks for each kind; none on other ranks than the first."""
    info = process_info()
    with small_heap():
        real = [recorded_on_real_ranks(kind, strategy, info) for kind in kinds]
        dist.barrier()
        dist.destroy_process_group()
        try:
            if info.rank == 0:
                with fake_process_group(info):
                    return [
                        (each, recorded(kind, strategy, info, True)) for each, kind in zip(real, kinds, strict=True)
                    ]
        finally:
            store = dist.FileStore(os.environ["CLOZE_TEST_STORE"] + "-after", info.world_size)
            dist.init_process_group("gloo", store=store, rank=info.rank, world_size=info.world_size)
    return []


OPTIMIZERS = ["adamw", "muon", "lamb", "ema"]
STEPS = {
    "ddp": [*OPTIMIZERS, "lora"],
    "fsdp2": [*OPTIMIZERS, "lora", "every"],
    "hsdp": [*OPTIMIZERS, "lora", "every"],
    "tp": OPTIMIZERS,  # which takes no adapter
    "fsdp2_tp": [*OPTIMIZERS, "every"],
}


@pytest.mark.parametrize(
    ("strategy", "num_ranks", "kinds"),
    [
        ("ddp", 2, ["muon"]),
        ("fsdp2", 2, ["adamw", "every"]),
        *(
            pytest.param(strategy, num_ranks, kinds, marks=slow)
            for strategy, kinds in STEPS.items()
            for num_ranks in (2, 4)
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_fake_equals_real(workers: WorkerPool, strategy: str, num_ranks: int, kinds: list[str]) -> None:
    for real, fake in workers.run(both, num_ranks, strategy, *kinds, timeout=240.0)[0]:
        assert fake.work.collectives == real.work.collectives
        assert len(real.work.collectives) > 3
        assert (fake.weights_bytes, fake.optimizer_bytes) == (real.weights_bytes, real.optimizer_bytes)
        assert fake.peak.num_bytes == pytest.approx(real.peak.num_bytes, rel=0.01)
        for kind in ("weights", "optimizer", "buffers", "data"):
            assert fake.peak.by_kind[kind] == real.peak.by_kind[kind]
        assert fake.work.flops == real.work.flops
