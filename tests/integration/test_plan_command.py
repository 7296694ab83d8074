"""`framework.plan` prints what a run needs, and rejects what cannot be planned."""

import re
from pathlib import Path

import pytest

from framework import plan
from framework.errors import ConfigError
from framework.planning.hardware import GIGA
from tests.support.commands.in_process import TINY

LENGTHS = "plan.lengths={mean: 60, max: 200, documents: 1000, vocab_size: 90}"
PRETRAIN = [
    *("experiment=pretrain_demo", "logger=none", *TINY, "task.sequence_length=32"),
    *("data.store=???", "trainer.max_steps=100", "trainer.global_batch_size=64", "trainer.val_every_n_steps=10"),
]


def planned(tmp_path: Path, *overrides: str):
    return plan.run([*PRETRAIN, f"run.dir={tmp_path}", LENGTHS, *overrides])


def test_a_plan_names_memory_traffic_time_and_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (record,) = planned(tmp_path, "strategy=hsdp", "plan.nodes=16", "hardware.price_per_hour=2.5")
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "16 x 8 under strategy=hsdp: 16 copies x 8 shards x 1 tensor parallel, bf16",
        "64 sequences",
        "64 of 128 data-parallel ranks have no sequence in a step",
        "of 80.00 GB: fits",
        "on dp_shard (8 ranks, within nodes)",
        "on dp_replicate (16 ranks, between 16 nodes)",
        "100 steps in",
        "epochs of 60,000 tokens",
    ):
        assert words in out
    weights = sum(weight.numel() for weight in record.phase.parts.model.parameters())
    assert re.search(rf"parameters {weights:,} ", out)
    assert weights * 4 / 8 <= record.step.weights_bytes < weights * 4 / 8 + 512 * 40
    assert [path.name for path in tmp_path.iterdir()] == []


def test_the_largest_micro_batch_that_fits_is_the_nearest_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = ["strategy=single", "plan.gpus_per_node=1", "trainer.micro_batch_tokens=4096", "hardware.reserve_gb=0"]
    (record,) = planned(tmp_path, *small, "trainer.global_batch_size=8", "hardware.memory_gb=0.0003")
    assert record.step.peak.num_bytes > 0.3e6
    assert "The run does not fit in 0.0003 GB. It fits with trainer.micro_batch_tokens=auto." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["plan.node=2"], "unknown config key `plan.node`. Did you mean `nodes`?"),
        (["plan.nodes=0"], "plan.nodes is 0. It must be at least 1"),
        (["strategy=single"], "strategy=single cannot run in 8 processes"),
        (["strategy=fsdp2_tp", "strategy.tensor_parallel_size=3"], "Use one of 1, 2, 4, 8."),
        (["strategy=hsdp", "strategy.replicate_size=3"], "It must divide the number of processes, which is 8"),
        (["hardware.matmul_share=[0.9,0.4]"], "hardware.matmul_share is [0.9, 0.4]. It must be two shares in (0, 1]"),
        (["plan.lengths={mean: 600, max: 200}"], "plan.lengths.mean is 600, min 8 and max 200"),
        (["precision=fp16", "strategy=ddp"], "reads values of tensors"),
    ],
)
def test_what_cannot_be_planned_is_named(overrides: list[str], message: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, *overrides)
    assert message in str(caught.value)


def test_lengths_replace_a_store_only(tmp_path: Path):
    with pytest.raises(ConfigError, match="the data of this task is not a token store"):
        plan.run(["experiment=finetune_demo", "logger=none", f"run.dir={tmp_path}", LENGTHS, "data.train=x.csv"])
