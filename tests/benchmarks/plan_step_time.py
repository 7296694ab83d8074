"""Planned and measured time of a step: `python -m tests.benchmarks.plan_step_time [ROUNDS]`, with OMP_NUM_THREADS=1.

Each round calibrates this machine as `framework.calibrate` does, and runs the steps of three encoders in fp32 and in
bf16, which were planned for it. Times are processor time of one thread, because other work may run beside it. The steps
are those of `framework.train` without a Trainer, of micro-batches of drawn words.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from hydra import compose, initialize_config_dir

import framework.distributed.processes.early_check
import framework.metrics.import_torchmetrics  # noqa: F401  must come before Lightning
from framework.batch import StepBatch
from framework.config.command import resolve_config
from framework.config.nodes import check_component
from framework.config.resolvers import conf_folder, register_resolvers
from framework.distributed.processes.environment import ProcessInfo
from framework.planning import calibration
from framework.planning.drawn_store import Lengths, write_drawn_store
from framework.planning.estimate import step_time
from framework.planning.fake_run import PhaseRecord, record_phases
from framework.planning.hardware import Hardware
from framework.runs.assembly import assemble_run

SIZES = {"4 layers x 128": (4, 128), "6 layers x 256": (6, 256), "12 layers x 384": (12, 384)}
PRECISIONS = ("fp32", "bf16")
PARTS = ("lowest", "expected", "highest", "products", "memory", "operators")
STEPS = 2
CPU = torch.device("cpu")
ONE = ProcessInfo()


def config_of(store: Path, size: str, precision: str) -> Mapping[str, Any]:
    """Returns the config of a pre-training with steps of 16 sequences of up to 128 tokens, in 2 micro-batches."""
    num_layers, width = SIZES[size]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        overrides = [
            *("experiment=pretrain_demo", f"data.store={store}", "logger=none", f"run.dir={store.parent}/runs"),
            *("strategy=single", "optimizer=adamw", f"precision={precision}", "task.sequence_length=128"),
            *(f"model.num_layers={num_layers}", f"model.hidden_size={width}", f"model.num_heads={width // 64}"),
            *(f"model.intermediate_size={width * 3 // 2}", "trainer.max_steps=100"),
            *("trainer.global_batch_size=16", "trainer.micro_batch_tokens=1024"),
        ]
        return resolve_config(compose("train", overrides))


def real_step(config: Mapping[str, Any]) -> Callable[[], None]:
    """Returns a function that runs the step that a plan records."""
    phase = assemble_run(config, ONE, CPU.type).phases[0]
    module, plan, number = phase.module, phase.data.plans["train"], phase.parts.max_steps - 1
    module.place("single", None, CPU)
    optimizer = module.configure_optimizers()
    batches = tuple(plan.source.build(share, number, share.shape) for share in plan.micro_batches(number, 0))
    step = StepBatch(number, plan.epoch(number), batches)
    return lambda: module.runner.run(step, optimizer, optimizer.step)


def calibrated(folder: Path) -> Hardware:
    """Returns the hardware file that `framework.calibrate` would write now."""
    text = calibration.measure("this machine", folder, None)
    assert text is not None
    hardware: Hardware = check_component("hardware", yaml.safe_load(text)).build()
    return hardware


def seconds_of(step: Callable[[], None]) -> float:
    """Returns the shortest processor time of a step."""
    times = []
    for _ in range(STEPS):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Prints a table of planned and measured seconds."""
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    register_resolvers()
    kinds = [(size, precision) for size in SIZES for precision in PRECISIONS]
    planned: dict[tuple[str, str], list[Any]] = defaultdict(list)
    measured: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_drawn_store(folder / "store", Lengths(200, 400, 1000, 8192), 200_000)
        configs = {kind: config_of(folder / "store", *kind) for kind in kinds}
        records: dict[tuple[str, str], PhaseRecord] = {kind: record_phases(configs[kind], ONE)[0] for kind in kinds}
        steps = {kind: real_step(configs[kind]) for kind in kinds}
        for step in steps.values():
            step()
        for _ in range(rounds):
            with patch.object(time, "perf_counter", time.process_time):
                hardware = calibrated(folder)
            print(hardware, flush=True)
            for kind in kinds:
                planned[kind].append(step_time(records[kind], hardware))
                measured[kind].append(seconds_of(steps[kind]))
    print("encoder          precision  planned ms  range        measured ms  planned by measured")
    for size, precision in kinds:
        times, seconds = planned[size, precision], measured[size, precision]
        middle = {part: 1e3 * statistics.median(getattr(each, part) for each in times) for part in PARTS}
        span = f"{middle['lowest']:.0f} to {middle['highest']:.0f}"
        ratios = [each.expected / real for each, real in zip(times, seconds, strict=True)]
        print(
            f"{size:16} {precision:9} {middle['expected']:11.1f}  {span:12} {1e3 * statistics.median(seconds):11.1f} "
            f"{statistics.median(ratios):8.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)}); at full rate "
            f"products {middle['products']:.0f}, others {middle['memory']:.0f}, starts {middle['operators']:.0f}"
        )


if __name__ == "__main__":
    main()
