"""Each experiment of a published recipe runs at its real shape, on fake tensors, as rank 0 of 8 GPUs."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from framework.config.command import resolve_config
from framework.config.phases import phase_configs
from framework.config.resolvers import conf_folder, register_resolvers
from framework.distributed.processes.environment import ProcessInfo
from framework.models.accounting import count_parameters
from framework.planning.drawn_store import Lengths, write_drawn_store
from framework.planning.fake_run import record_phases
from tests.support.needs import slow

RANKS = ProcessInfo(world_size=8, local_world_size=8)
# Vocabulary of each recipe, and millions of parameters that the authors state for the encoder.
RECIPES = [
    ("bert_base", 30522, 110),
    ("modernbert_base", 50368, 149),
    ("cramming", 32768, 120),
    ("electra_small", 30522, 14),
    ("ettin_17m", 50368, 17),
    ("ettin_32m", 50368, 32),
    ("ettin_68m", 50368, 68),
    ("ettin_150m", 50368, 150),
    ("ettin_400m", 50368, 395),
    ("ettin_1b", 50368, 1028),
    ("modernbert_large", 50368, 395),
    ("mosaicbert", 30522, 137),
    ("neobert", 30522, 222),
]


@slow
@pytest.mark.parametrize(("recipe", "vocab_size", "millions"), RECIPES)
def test_a_recipe_runs_at_its_real_shape(recipe: str, vocab_size: int, millions: int, tmp_path: Path) -> None:
    write_drawn_store(tmp_path / "store", Lengths(2000, 16384, 1000, vocab_size), 200_000)
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        overrides = [f"data.store={tmp_path}/store", f"run.dir={tmp_path}/runs", "logger=none"]
        config = resolve_config(compose("train", [f"experiment=pretrain_{recipe}", *overrides]))
    records = record_phases(config, RANKS, "cuda")
    assert len(records) == len(phase_configs(config))
    for record in records:
        parts, weights = record.phase.parts, sum(each.numel() for each in record.phase.parts.model.parameters())
        assert count_parameters(parts.config).total == pytest.approx(millions * 1e6, rel=0.05)
        # Each rank holds an eighth of the rows, rounded up, of all weights and of two moments.
        assert weights * 4 / 8 <= record.step.weights_bytes <= 1.01 * weights * 4 / 8
        assert record.step.optimizer_bytes == pytest.approx(2 * record.step.weights_bytes, rel=0.001)
        assert record.shape.shard == 8 and record.num_micro_batches >= 1
        axes = {(each.axis, each.num_ranks, each.nodes) for each in record.work.collectives}
        assert axes == {("dp_shard", 8, 1)}
        gathered = sum(each.num_bytes for each in record.step.repeated.collectives if "allgather" in each.name)
        assert record.num_micro_batches == 1 or gathered > 0
        # Six operations for each weight of a matrix and each token, and attention and the decoder on top.
        matrices = count_parameters(parts.config).matrices
        assert sum(record.step.work.flops.values()) > 6 * matrices * record.traced_tokens
