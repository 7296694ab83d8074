"""Tests of pre-training from text to metrics.jsonl: steps do not depend on their division, nor on resuming.

BERT mini with 4,098 words, which four ranks do not divide, dropout 0.1, masked words and next sentences. A step has 9
sequences, most of them longer than half a micro-batch, so that some rank has three micro-batches or more and another an
empty one.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from framework.callbacks.cadence import Cadence
from framework.callbacks.resume import Resume
from framework.callbacks.standard import standard_callbacks
from framework.checkpoint.layout import newest_complete
from framework.checkpoint.retention import Retention
from framework.config.resolvers import conf_folder
from framework.data.planning.plan import StepPlan
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.datamodules.datamodule import EncoderDataModule
from framework.distributed.mesh import mesh_shape
from framework.distributed.parallel.precision import Precision
from framework.distributed.processes.environment import ProcessInfo, process_info
from framework.distributed.strategy import build_strategy
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.modules.encoder_module import EncoderModule
from framework.modules.trainer import build_trainer
from framework.nn.initialization import initial_values
from framework.optim.parameter_groups import AdamW
from framework.optim.schedules import Linear
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.task import TaskModel
from tests.support.data.drawn_store import drawn_store

SEED = 7
STEPS = 10
GLOBAL_BATCH_SIZE = 9
TIGHT, WIDE = 32, 512


def bert_mini(num_layers: int = 4) -> EncoderConfig:
    """Returns the shipped preset; fewer layers and words only save time."""
    preset = OmegaConf.load(conf_folder() / "model" / "bert_mini.yaml")
    return EncoderConfig(**{**preset, "num_layers": num_layers, "vocab_size": 4098})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_store(tmp_path_factory.mktemp("corpus"))


def build_module(task: PretrainingTask, config: EncoderConfig, max_steps: int) -> EncoderModule:
    with torch.device("meta"):
        encoder = TransformerEncoder(config)
        model = TaskModel(encoder, task.build_head(encoder, config))
    return EncoderModule(
        model=model,
        task=task,
        seed=SEED,
        precision=Precision("fp32"),
        initial_values=lambda built: initial_values(built, config, SEED),
        build_optimizer=lambda built: AdamW(lr=5e-4).build(built.named_parameters(), {}, torch.float32),
        schedule=Linear(max_steps, warmup_fraction=0.1),
        max_grad_norm=1.0,
    )


class StopAt(pl.Callback):
    """Callback that ends a run after a step, before anything of that step is logged or saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int):
        if trainer.global_step == self.step:
            raise InterruptedError


def run(
    store: str, run_folder: str, strategy: str, budget: int, cadence: Cadence, num_layers: int, stop_at: int | None
) -> list[list[int]]:
    """Runs one rank from the store to the files, or resumes from the newest checkpoint. Returns its step shares."""
    torch.set_num_threads(1)
    info = process_info() if dist.is_initialized() else ProcessInfo()
    task = PretrainingTask(sequence_length=32)
    tokenizer = Tokenizer.from_folder(Path(store) / "tokenizer")
    sources = task.build_sources(StoreData(store, validation_fraction=0.1), tokenizer, SEED)
    shape = mesh_shape(
        strategy, info.world_size, 2 if strategy == "hsdp" else None, 2 if strategy == "fsdp2_tp" else None
    )
    rank = shape.data_parallel_rank(info.rank)
    data = EncoderDataModule(
        sources,
        SEED,
        GLOBAL_BATCH_SIZE,
        budget,
        cadence.max_steps,
        task.wraps_epochs,
        shape.data_parallel_size,
        rank,
    )
    checkpoint = newest_complete(Path(run_folder) / "checkpoints")
    resume = Resume(checkpoint, Path(run_folder) / "checkpoints") if checkpoint is not None else None
    callbacks = standard_callbacks(Path(run_folder), cadence, task, Retention(keep_last=1), resume)
    trainer = build_trainer(
        build_strategy(strategy, shape, 60.0),
        "cpu",
        info.local_world_size,
        info.num_nodes,
        cadence.max_steps,
        cadence.validate_every_n_steps,
        [*callbacks, *([StopAt(stop_at)] if stop_at is not None else [])],
    )
    try:
        trainer.fit(build_module(task, bert_mini(num_layers), cadence.max_steps), datamodule=data)
    except InterruptedError:
        assert stop_at is not None
    return shares(data.plans["train"], cadence.max_steps, rank)


def shares(plan: StepPlan, num_steps: int, rank: int) -> list[list[int]]:
    """Returns the sequences in each micro-batch of each step of one rank."""
    return [[len(share) for share in plan.micro_batches(step, rank)] for step in range(num_steps)]


def rows_of(run_folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


EVERY_STEP = Cadence(max_steps=STEPS, log_every_n_steps=1, validate_every_n_steps=STEPS)


@pytest.fixture(scope="module")
def one_process(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs the reference for all other runs: one process, one micro-batch per step."""
    run_folder = tmp_path_factory.mktemp("one_process")
    run(str(store), str(run_folder), "single", WIDE, EVERY_STEP, 4, None)
    return run_folder


def check_equal(run_folder: Path, one_process: Path, num_steps: int = STEPS) -> None:
    """Checks every number of every row, including validation and tokens."""
    ours, theirs = rows_of(run_folder), rows_of(one_process)[:num_steps]
    assert [row["step"] for row in ours] == list(range(1, num_steps + 1))
    for our_row, their_row in zip(ours, theirs, strict=True):
        assert our_row == pytest.approx(their_row, rel=1e-5)


def test_another_micro_batch_budget(store: Path, one_process: Path, tmp_path: Path):
    by_step = run(str(store), str(tmp_path), "single", TIGHT, EVERY_STEP, 4, None)
    assert min(len(step) for step in by_step) >= 3
    check_equal(tmp_path, one_process)


@pytest.mark.parametrize(
    ("strategy", "world_size", "num_steps"),
    [
        ("ddp", 2, 5),
        ("ddp", 4, STEPS),
        ("fsdp2", 2, STEPS),
        ("fsdp2", 4, 5),
        ("hsdp", 4, 5),
        ("tp", 2, STEPS),
        ("tp", 4, 5),
        ("fsdp2_tp", 4, STEPS),
    ],
)
def test_ranks_and_strategies(
    strategy: str, world_size: int, num_steps: int, store: Path, one_process: Path, tmp_path: Path, workers
):
    stop_at = None if num_steps == STEPS else num_steps
    args = (str(store), str(tmp_path), strategy, TIGHT, EVERY_STEP, 4, stop_at)
    by_rank = workers.run(run, world_size, *args, timeout=400.0)
    if strategy == "tp":
        assert all(rank == by_rank[0] for rank in by_rank), "all ranks read the same"
    else:
        assert_uneven(by_rank)
    check_equal(tmp_path, one_process, num_steps)


def assert_uneven(by_rank: Sequence[list[list[int]]]) -> None:
    """Asserts that in some step one rank has three or more micro-batches with sequences, and another an empty one."""
    steps = zip(*by_rank, strict=True)
    assert any(
        any(sum(size > 0 for size in share) >= 3 for share in ranks) and any(0 in share for share in ranks)
        for ranks in steps
    )


@pytest.mark.parametrize(("strategy", "world_size", "stop_at"), [("ddp", 2, 3), ("fsdp2", 4, 5), ("fsdp2_tp", 4, 3)])
def test_a_run_that_was_cut_ends_with_the_bytes_of_one_that_was_not(
    strategy: str, world_size: int, stop_at: int, store: Path, tmp_path: Path, workers
):
    cadence = Cadence(max_steps=6, log_every_n_steps=1, validate_every_n_steps=4, checkpoint_every_n_steps=2)
    undisturbed, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, stop in ((undisturbed, None), (cut, stop_at), (cut, None)):
        workers.run(run, world_size, str(store), str(folder), strategy, TIGHT, cadence, 1, stop, timeout=400.0)
    assert (cut / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
