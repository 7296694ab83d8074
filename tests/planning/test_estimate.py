"""The time of a step, computed by hand, and the operations that it is computed from."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from framework.planning.estimate import step_time
from framework.planning.fake_run import PhaseRecord
from framework.planning.hardware import Hardware
from framework.planning.memory import LiveMemory
from framework.planning.recorder import StepRecorder, Work

HARDWARE: dict[str, Any] = {
    "name": "mine",
    "device": "cpu",
    "bf16_tflops": 1.0,
    "fp32_tflops": 0.5,
    "memory_gb": 8.0,
    "memory_gb_per_second": 100.0,
    "node_gb_per_second": 5.0,
    "network_gb_per_second": 1.0,
    "matmul_share": [0.5, 1.0],
    "memory_share": [0.5, 1.0],
    "link_share": [0.5, 1.0],
    "reserve_gb": 0.0,
    "fragment_share": 0.0,
    "latency_seconds": 0.0,
    "storage_gb_per_second": 1.0,
}


def record_of(work: Work) -> PhaseRecord:
    module = SimpleNamespace(precision=SimpleNamespace(compute_dtype=torch.bfloat16))
    parts = SimpleNamespace(config=SimpleNamespace(num_layers=0, hidden_size=64))
    phase = SimpleNamespace(module=module, parts=parts)
    return cast(PhaseRecord, SimpleNamespace(work=work, phase=phase, num_micro_batches=1, traced=1, traced_lengths=()))


def test_starts_of_products_and_operators_take_time() -> None:
    # 0.3 s and 1,000 starts of 0.2 ms in bf16; 0.3 s in fp32.
    flops, products = Counter(bfloat16=3 * 10**11, float32=15 * 10**10), Counter(bfloat16=1000, float32=10)
    work = Work(flops=flops, num_products=products, moved_bytes=3 * 10**9, num_operators=4000)
    hardware = Hardware(**HARDWARE, bf16_product_seconds=2e-4, operator_seconds=5e-5)
    time = step_time(record_of(work), hardware)
    assert (time.products, time.memory, time.operators) == pytest.approx((0.8, 0.03, 0.2))
    assert time.lowest == pytest.approx(0.83 + 0.2)
    assert time.expected == pytest.approx(0.83 / 0.75 + 0.2)
    assert time.highest == pytest.approx(0.83 / 0.5 + 0.2)
    assert time.bound == "matrix products"
    assert step_time(record_of(work), Hardware(**HARDWARE)).lowest == pytest.approx(0.6 + 0.03)
    twice = work.plus(work, 2)
    assert (twice.num_products, twice.flops["float32"]) == (Counter(bfloat16=3000, float32=30), 45 * 10**10)


def test_products_and_their_operations_are_counted_by_dtype() -> None:
    recorder = StepRecorder(LiveMemory(), None, 1)
    left, right, bias = torch.ones(2, 6, 5), torch.ones(2, 5, 7), torch.ones(7)
    with recorder:
        left[0] @ right[0]
        left @ right
        torch.addmm(bias, left[0], right[0])
        torch.baddbmm(torch.ones(2, 6, 7), left, right)
        left[0, :, :3].bfloat16() @ right[0, :3].bfloat16()
    flops = sum((work.flops for work in recorder.work.values()), Counter[str]())
    product = 2 * 6 * 5 * 7
    assert flops == Counter(float32=6 * product, bfloat16=2 * 6 * 3 * 7)
    products = sum((work.num_products for work in recorder.work.values()), Counter[str]())
    assert products == Counter(float32=4, bfloat16=1)


def test_bytes_are_those_that_operators_read_and_write() -> None:
    recorder, kilobyte = StepRecorder(LiveMemory(), None, 1), torch.ones(256)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(kilobyte)
    for tensor in (kilobyte, fake):  # a fake tensor reports reads of its device as operators
        recorder.begin()
        result = torch.empty_like(tensor)
        with recorder:
            assert tensor.device.type == "cpu"
            torch.add(tensor, tensor, out=result)  # 2 read, 1 written
            tensor.view(16, 16).mul_(2.0)  # 1 read, 1 written
        (work,) = recorder.work.values()
        assert (work.moved_bytes, work.num_operators) == (5 * 1024, 3)
