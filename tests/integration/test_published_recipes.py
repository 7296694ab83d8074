"""The experiments of published pre-training recipes train at a small shape through all of their phases."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from framework import train
from framework.config.command import resolve_config
from framework.config.phases import phase_configs
from framework.config.resolvers import conf_folder, register_resolvers
from tests.support.training.tiny_run import make_store, rows, summary

SMALL = [
    *("logger=none", "precision=fp32", "strategy=single", "run.id=run", "data.validation_fraction=0.2"),
    *("model.vocab_size=null", "model.hidden_size=32", "model.num_layers=4", "model.num_heads=2"),
    *("model.intermediate_size=48", "trainer.global_batch_tokens=null", "trainer.global_batch_size=9"),
    *("trainer.micro_batch_tokens=256", "trainer.log_every_n_steps=1", "trainer.report_explanations=0"),
]
TOKENS_OF_A_STEP = 250


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("recipes") / "data")


def scaled(experiment: str, store: Path, runs: Path) -> list[str]:
    """Returns overrides that shorten an experiment: 7 steps of each phase, of at most 32 and 64 tokens."""
    own = [f"experiment={experiment}", f"data.store={store}", f"run.dir={runs}", *SMALL]
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = resolve_config(compose("train", own))
    own.append("trainer.batch_warmup_start=null" if not config["phases"] else "task.sequence_length=32")
    if not config["phases"]:
        own += ["trainer.max_steps=20", "task.sequence_length=32"]
    first = phase_configs(config)[0][1]["task"]["sequence_length"]
    for phase, its_config in phase_configs(config) if config["phases"] else []:
        prefix = f"++phases.{phase.name}"
        own += [f"{prefix}.trainer.max_tokens=null", f"{prefix}.trainer.max_steps=7"]
        if its_config["task"]["sequence_length"] != first:
            own.append(f"{prefix}.task.sequence_length=64")
        if its_config["trainer"]["batch_warmup_start"] is not None:
            own += ["trainer.batch_warmup_start=3", f"{prefix}.trainer.batch_warmup_tokens={3 * TOKENS_OF_A_STEP}"]
        schedule = its_config["schedule"]
        own += [f"{prefix}.schedule.warmup_tokens={2 * TOKENS_OF_A_STEP}"] if schedule.get("warmup_tokens") else []
        own += [f"{prefix}.schedule.warmup_steps=2"] if schedule.get("warmup_steps") else []
    return own


@pytest.mark.parametrize(
    ("experiment", "num_phases"),
    [
        ("pretrain_bert_base", 2),
        ("pretrain_cramming", 0),
        ("pretrain_electra_small", 0),
        ("pretrain_ettin_17m", 3),
        ("pretrain_modernbert_base", 3),
        ("pretrain_modernbert_large", 4),
        ("pretrain_mosaicbert", 0),
        ("pretrain_neobert", 3),
    ],
)
def test_a_published_recipe_trains_through_its_phases(experiment: str, num_phases: int, store: Path, tmp_path: Path):
    run = train.run(scaled(experiment, store, tmp_path))
    values = rows(run)
    num_steps = 7 * num_phases or 20
    assert (summary(run)["ended"], summary(run)["steps"]) == ("finished", num_steps)
    losses = [row["train/loss"] for row in values if "train/loss" in row]
    assert len(losses) == num_steps and sum(losses[-3:]) < sum(losses[:3])
