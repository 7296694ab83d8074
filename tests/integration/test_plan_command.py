"""`framework.plan` prints what a run needs, and rejects what cannot be planned."""

import re
from pathlib import Path

import pytest

from framework import plan
from framework.errors import ConfigError
from framework.planning.comparison import totals_of
from framework.planning.planner import Plan
from tests.support.commands.in_process import TINY

LENGTHS = "plan.lengths={mean: 60, max: 200, documents: 1000, vocab_size: 90}"
PRETRAIN = [
    *("experiment=pretrain_demo", "logger=none", *TINY, "task.sequence_length=32"),
    *("data.store=???", "trainer.max_steps=100", "trainer.global_batch_size=64", "trainer.val_every_n_steps=10"),
]


def planned(tmp_path: Path, *overrides: str) -> list[Plan]:
    return plan.run([*PRETRAIN, f"run.dir={tmp_path}", LENGTHS, *overrides])


def test_a_plan_names_memory_traffic_time_and_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (plan,) = planned(tmp_path, "strategy=hsdp", "plan.nodes=16", "hardware.price_per_hour=2.5")
    (record,) = plan.records
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "16 x 8 under strategy=hsdp: 16 copies x 8 shards x 1 tensor parallel, bf16",
        "64 sequences",
        "64 of 128 data-parallel ranks have no sequence in a step",
        "of 84.90 GB: fits",
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


def test_a_sharded_strategy_is_planned_on_one_rank(tmp_path: Path):
    (plan,) = planned(tmp_path, "strategy=fsdp2", "plan.gpus_per_node=1")
    assert {each.num_ranks for each in plan.records[0].work.collectives} <= {1}
    assert plan.records[0].step.peak.num_bytes > plan.records[0].step.weights_bytes > 0


def test_the_largest_micro_batch_that_fits_is_the_nearest_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = ["strategy=single", "plan.gpus_per_node=1", "trainer.micro_batch_tokens=4096", "hardware.reserve_gb=0"]
    (plan,) = planned(tmp_path, *small, "trainer.global_batch_size=8", "hardware.memory_gb=0.0003")
    assert plan.records[0].step.peak.num_bytes > 0.3e6 and not plan.fits
    assert "The run does not fit in 0.0003 GB. It fits with trainer.micro_batch_tokens=auto." in capsys.readouterr().out


def test_recomputed_activations_need_less_memory(tmp_path: Path):
    # One process under ddp has a process group, as in training.
    on_one = ["strategy=ddp", "plan.gpus_per_node=1", "model.num_layers=3"]
    (kept,) = planned(tmp_path, *on_one)
    (recomputed,) = planned(tmp_path, *on_one, "strategy.activation_checkpointing.mode=full")
    before, after = (plan.records[0].step for plan in (kept, recomputed))
    assert after.peak.by_kind["activations"] < 0.8 * before.peak.by_kind["activations"]
    assert sum(after.work.flops.values()) > sum(before.work.flops.values())


def test_compiled_and_captured_steps_are_planned_in_their_own_memory_and_traffic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (captured,) = planned(tmp_path, "strategy=ddp")
    assert "CUDA graphs keep" in (out := capsys.readouterr().out) and "compiled layers run uncompiled here" in out
    (plain,) = planned(tmp_path, "strategy=ddp", "strategy.compile=none", "strategy.graph=false")
    assert "CUDA graphs keep" not in (out := capsys.readouterr().out) and "compiled layers run" not in out
    (own,), (other,) = captured.records, plain.records
    # The pool, which has room for one pass, and an ordinary pass.
    pool, activations = (own.step.peak.by_kind[kind] for kind in ("graphs", "activations"))
    assert 0.8 * activations < pool < 1.2 * activations and other.step.peak.by_kind["graphs"] == 0
    assert own.step.peak.num_bytes > 1.5 * other.step.peak.num_bytes
    # All gradients are summed at once, and the tensors of a micro-batch have one of a few sizes.
    weights = sum(weight.numel() for weight in own.phase.parts.model.parameters())
    largest = max(own.work.collectives, key=lambda each: each.num_bytes)
    assert largest.name.startswith("allreduce") and 4 * weights <= largest.num_bytes < 4 * weights + 64 * 256
    assert len(own.work.collectives) < len(other.work.collectives)
    budgets = own.phase.data.plans["train"].budgets
    assert len(budgets) <= 3 and own.traced_tokens < budgets[-1]


def test_the_loss_scale_of_fp16_is_planned(tmp_path: Path):
    (plan,) = planned(tmp_path, "strategy=ddp", "precision=fp16")
    assert plan.records[0].work.flops["float16"] > 0


@pytest.mark.parametrize("strategy", ["fsdp2", "ddp"])
def test_float8_is_planned_with_the_modules_of_torchao(tmp_path: Path, strategy: str):
    pytest.importorskip("torchao")
    (plan,) = planned(tmp_path, f"strategy={strategy}", "precision=float8", "model.intermediate_size=32")
    assert plan.records[0].work.flops["float8_e4m3fn"] > 0


def test_batches_that_do_not_divide_are_named_and_the_fullest_rank_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (plan,) = planned(tmp_path, "strategy=ddp", "trainer.global_batch_size=12")
    out = " ".join(capsys.readouterr().out.split())
    assert "12 sequences do not divide by 8 data-parallel ranks" in out
    assert "The nearest that divide are 8 and 16." in out
    (plan,) = planned(tmp_path, "strategy=ddp", "trainer.global_batch_size=3")
    assert "5 of 8 data-parallel ranks have no sequence in a step. Use at most 3" in " ".join(
        capsys.readouterr().out.split()
    )
    train = plan.records[0].phase.data.plans["train"]
    sequences = train.sequences(99)
    assert plan.records[0].traced_lengths == (max(train.source.lengths(sequences.epochs, sequences.indices)),)


def test_plans_are_compared_and_the_cheapest_that_fits_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hardware = tmp_path / "conf" / "hardware"
    hardware.mkdir(parents=True)
    # The price shows that the folder of this file is searched for each combination.
    (hardware / "mine.yaml").write_text("defaults: [h100]\nname: mine\nprice_per_hour: 3600000\n")
    plans = planned(
        tmp_path / "runs",
        *(f"hydra.searchpath=[file://{tmp_path}/conf]", "hardware=mine", "strategy=hsdp", "plan.nodes=4"),
        *("plan.compare={strategy: [ddp,single], plan.nodes: [2,1]}", f"plan.output={tmp_path}/out"),
    )
    assert [plan.config["strategy"]["name"] for plan in plans] == ["ddp", "ddp"]
    assert [plan.records[0].shape.replicate for plan in plans] == [16, 8]
    out = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert out[0] == "strategy plan.nodes memory fits step time tokens/s run GPU hours cost"
    slow, cheap = plans
    assert totals_of(cheap).gpu_hours < totals_of(slow).gpu_hours
    costs = [plan.records[0].shape.replicate * 1000 * totals_of(plan).seconds[0] for plan in plans]
    assert out[1].startswith("ddp 2 1.30 GB yes ") and out[1].endswith(f" {costs[0]:,.0f}")
    assert out[2].startswith("ddp 1 1.30 GB yes ") and out[2].endswith(f" {costs[1]:,.0f} cheapest")
    assert out[3:5] == ["single 2 cannot be planned", "single 1 cannot be planned"]
    assert out[5].startswith("strategy=single plan.nodes=2: strategy=single cannot run in 16 processes")
    assert out[7:] == ["The cheapest that fits: strategy=ddp plan.nodes=1", f"picture: {tmp_path}/out/plan.png"]
    assert (tmp_path / "out" / "plan.png").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["plan.node=2"], "unknown config key `plan.node`. Did you mean `nodes`?"),
        (["plan.nodes=0"], "plan.nodes is 0. It must be at least 1"),
        (["strategy=single"], "strategy=single cannot run in 8 processes"),
        (
            ["strategy=fsdp2_tp", "strategy.tensor_parallel_size=3"],
            "nearest is strategy.tensor_parallel_size=2, of",
        ),
        (["hardware.matmul_share=[0.9,0.4]"], "hardware.matmul_share is [0.9, 0.4]. It must be two shares in (0, 1]"),
        (["plan.lengths={mean: 600, max: 200}"], "plan.lengths.mean is 600, min 8 and max 200"),
        (["precision=float8", "strategy=ddp", "hardware=a100_80"], "hardware=A100 80 GB has no fp8_tflops"),
        (["plan.compare={plan.nodes: 2}"], "plan.compare has plan.nodes: 2. Each key has a list of texts, numbers or"),
        (["plan.compare={strategie: [ddp]}"], "unknown config key `strategie`. Did you mean `strategy`?"),
        (["plan.output=x"], "plan.output is x, but plan.compare is null"),
        (["plan.fit=ranks"], "`plan.fit` is 'ranks'. It must be"),
    ],
)
def test_what_cannot_be_planned_is_named(overrides: list[str], message: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, *overrides)
    assert message in str(caught.value)


def test_lengths_replace_a_store_only(tmp_path: Path):
    with pytest.raises(ConfigError, match="the data of this task is not a token store"):
        plan.run(["experiment=finetune_demo", "logger=none", f"run.dir={tmp_path}", LENGTHS, "data.train=x.csv"])
