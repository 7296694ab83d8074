"""Every YAML file under conf/ is found, composed as a user would name it, checked and built.

Bases, whose names begin with an underscore, are composed as a part of the files that include them.
"""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

from framework.audits.audit import Audit
from framework.config.command import resolve_config
from framework.config.command_schema import (
    AuditConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    PredictConfig,
    PrepareConfig,
    ReportConfig,
)
from framework.config.mine_schema import MineConfig
from framework.config.nodes import check_arguments, check_component
from framework.config.phases import phase_configs
from framework.config.plugins import PLUGIN_MODULE
from framework.config.resolvers import conf_folder, register_resolvers
from framework.config.schema import TrainConfig
from framework.data.planning.batch_size import TokenSteps
from framework.models.config import EncoderConfig
from framework.planning.hardware import Hardware
from framework.planning.settings import PlanConfig
from framework.runs.augmenting import build_augmentation
from framework.runs.build import build_settings
from framework.sweeps.search import OptunaSweeper
from framework.sweeps.slurm import SlurmLauncher
from framework.sweeps.torchrun import TorchrunLauncher

CONF = conf_folder()
ALL_FILES = sorted(CONF.rglob("*.yaml"))
# Lists of words that audits and augmentations read, no options of a group.
WORD_LISTS = sorted((*(CONF / "audit" / "word_sets").glob("*.yaml"), *(CONF / "augmentation" / "pairs").glob("*.yaml")))
FILES = [path for path in ALL_FILES if not path.stem.startswith("_") and path not in WORD_LISTS]
BASES = [path for path in ALL_FILES if path.stem.startswith("_")]
EXPERIMENTS = sorted(path.stem for path in FILES if path.parent.name == "experiment")
# Data whose keys are not those of a table.
EXPERIMENT_OF_DATA = {"parallel_text": "finetune_translation", "interactions": "finetune_recommendation"}
PLUGINS = {"slurm": SlurmLauncher, "torchrun": TorchrunLauncher, "optuna": OptunaSweeper}
BENCHMARKS = {"/glue", "/clue"}
"""Groups with a file for each task of a benchmark, whose experiment has the same name."""
PUBLISHED_RECIPES = (
    *("bert_base", "cramming", "modernbert_base", "modernbert_large", "mosaicbert", "neobert", "electra_small"),
    *("ettin_17m", "ettin_32m", "ettin_68m", "ettin_150m", "ettin_400m", "ettin_1b"),
)
# Overrides that a group's option needs besides its name.
NEEDS = {
    "audit/attack": ["audit.attack.candidates=x"],
    "audit/contrast": ["audit.contrast.original=x", "audit.contrast.edited=y"],
    "audit/groups": ["audit.groups.columns=[x]"],
    "audit/stereotypes": ["audit.stereotypes.pairs=x"],
    "adapter/lora": ["init_from=x"],
    "tokenizer/folder": ["tokenizer.path=x"],
    "tokenizer/from_weights": ["init_from=x"],
    "model/from_weights": ["init_from=x"],
    "precision/fp16": ["strategy=ddp"],
    "regularization/distillation": ["regularization.teacher=x"],
    "experiment/finetune_distilled": ["regularization.teacher=x"],
    "vocabulary/given": ["vocabulary.path=x"],
    "vocabulary/extended": ["vocabulary.path=x"],
    "experiment/continue_pretraining": ["init_from=x"],
    "experiment/extend_vocabulary": ["init_from=x"],
    "experiment/glue": ["init_from=x"],
    "experiment/clue": ["init_from=x"],
    **{f"experiment/pretrain_{name}": ["data.store=x"] for name in PUBLISHED_RECIPES},
    "corpus/text": ["corpus.sources.text.files=x.txt"],
    "corpus/table": ["corpus.sources.table.files=x.csv"],
    "corpus/dataset": ["corpus.sources.dataset.name=x"],
    "corpus/shards": ["corpus.sources.shards.files=x.parquet"],
}


@pytest.fixture(autouse=True, scope="module")
def hydra_here():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(name: str, *overrides: str) -> DictConfig:
    """Composes the config, with data files if it requires the user to name them."""
    config = compose(name, list(overrides))
    data = config.get("data") or {}
    missing = [f"data.{key}=x" for key in data if OmegaConf.is_missing(data, key)]
    return compose(name, [*overrides, *missing]) if missing else config


def experiment_of(task: str) -> str:
    """Returns the experiment in which a task's file is composed, because others set keys of their own tasks."""
    return next(
        name
        for name in EXPERIMENTS
        if f"experiment/{name}" not in NEEDS
        and f"/task: {task}\n" in (CONF / "experiment" / f"{name}.yaml").read_text()
    )


def name_of(file: Path) -> str:
    return str(file.relative_to(CONF).with_suffix(""))


def test_the_number_of_files_is_known():
    """A file in a folder that no test reads would remain untested. Raise the numbers with each new file."""
    by_group = {group.name: len(list(group.rglob("*.yaml"))) for group in CONF.iterdir() if group.is_dir()}
    assert by_group == {
        "adapter": 2,
        "audit": 10,
        "augmentation": 9,
        "clue": 7,
        "corpus": 6,
        "data": 18,
        "experiment": 46,
        "glue": 9,
        "hardware": 8,
        "hydra": 3,
        "logger": 5,
        "model": 18,
        "optimizer": 5,
        "precision": 5,
        "privacy": 2,
        "regularization": 5,
        "schedule": 5,
        "strategy": 8,
        "task": 16,
        "tokenizer": 6,
        "trainer": 1,
        "vocabulary": 4,
    }
    assert len(ALL_FILES) == sum(by_group.values()) + 13
    assert (len(BASES), len(WORD_LISTS)) == (16, 4)
    assert len(FILES) == len(ALL_FILES) - 16 - 4


@pytest.mark.parametrize("base", BASES, ids=name_of)
def test_every_base_is_included_by_several_files(base):
    """A base that only one file includes would just hide its keys. One without any would never be composed."""
    including = [file for file in ALL_FILES if base in included_files(file)]
    assert len(including) > 1


def included_files(file: Path) -> list[Path]:
    """Returns the files that the defaults list of a file names directly, not as an option of a group."""
    defaults = OmegaConf.to_container(OmegaConf.load(file)).get("defaults", [])
    paths = [each.partition("@")[0] for each in defaults if isinstance(each, str)]
    return [(CONF if path.startswith("/") else file.parent) / f"{path.lstrip('/')}.yaml" for path in paths]


@pytest.mark.parametrize("file", sorted((CONF / "experiment").glob("*.yaml")), ids=name_of)
def test_no_experiment_repeats_a_default_of_training(file):
    defaults = {
        f"override /{group}": option for each in groups_of(CONF / "train.yaml") for group, option in each.items()
    }
    assert not [each for each in groups_of(file) for group, option in each.items() if defaults[group] == option]


def groups_of(file: Path) -> list[dict[str, str]]:
    config = OmegaConf.to_container(OmegaConf.load(file))
    # The tasks of a benchmark are groups that no other experiment has.
    return [each for each in config["defaults"] if isinstance(each, dict) and not BENCHMARKS & {*each}]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_file_composes_checks_and_builds(file):
    name = name_of(file)
    group, _, option = name.partition("/")
    needs = NEEDS.get(name, [])
    if not option:
        check_command(name)
    elif group == "corpus":
        config = resolve_config(composed("prepare", f"corpus={option}", *needs))
        settings = PrepareConfig(**check_arguments("", config, PrepareConfig))
        assert all(source.build() for source in settings.corpus.sources.values())
    elif group == "audit":
        settings = check_audits(f"audit={option}", *needs)
        assert isinstance(settings.audit[option].build(), Audit)
    elif group == "hardware":
        config = composed("plan", "experiment=pretrain_demo", f"hardware={option}")
        assert isinstance(check_plan({key: config[key] for key in ("plan", "hardware")}).hardware.build(), Hardware)
    elif group == "vocabulary":
        assert check_component(group, resolve_config(composed(name, *needs))[group]).build()
    elif group == "hydra":
        assert set(plugin_keys(file)) == {"_target_", *inspect.signature(PLUGINS[file.stem]).parameters}
        check_settings(composed("train", "experiment=pretrain_demo", f"{name.rpartition('/')[0]}={file.stem}"))
    elif name == "data/of_run":
        data = resolve_config(composed("evaluate", "run=x"))["data"]
        assert "test" in data and not any(data.values())
    elif f"/{group}" in BENCHMARKS:
        check_settings(composed("train", f"experiment={group}", f"{group}={option}", "init_from=x"))
    elif group == "experiment":
        check_settings(composed("train", f"experiment={option}", *needs))
    else:
        labelled = group == "data" and option != "demo_corpus"
        experiment = experiment_of(option) if group == "task" else "finetune_demo" if labelled else "pretrain_demo"
        experiment = EXPERIMENT_OF_DATA.get(option, experiment) if group == "data" else experiment
        check_settings(composed("train", f"experiment={experiment}", f"{group}={option}", *needs))


def plugin_keys(file: Path) -> DictConfig:
    config = OmegaConf.load(file)
    assert isinstance(config, DictConfig)
    assert config._target_ == f"{PLUGIN_MODULE}.{PLUGINS[file.stem].__name__}"
    return config


def check_command(name: str) -> None:
    schemas = {"prepare": PrepareConfig, "evaluate": EvaluateConfig, "predict": PredictConfig, "export": ExportConfig}
    schemas |= {"report": ReportConfig, "explain": ExplainConfig, "mine": MineConfig}
    if name == "audit":
        check_audits("audit=contrast", *NEEDS["audit/contrast"])
        return
    if name in ("train", "plan"):
        config = composed(name, "experiment=pretrain_demo")
        with open_dict(config):
            own = {key: config.pop(key) for key in ("plan", "hardware") if name == "plan"}
        check_settings(config)
        if own:
            assert check_plan(own).settings.first_rank.world_size == 8
        return
    needs = {"prepare": [], "evaluate": ["run=x"], "predict": ["run=x", "text=hello"], "export": ["run=x"]}
    needs |= {"report": ["run=x"], "explain": needs["predict"], "mine": ["run=x", "queries=x", "output=x.jsonl"]}
    config = resolve_config(composed(name, *needs[name]))
    if name == "evaluate":
        config["data"] = None
    assert schemas[name](**check_arguments("", config, schemas[name]))


def check_plan(own: dict[str, DictConfig]) -> PlanConfig:
    values = {key: resolve_config(DictConfig(node)) for key, node in own.items()}
    return PlanConfig(**check_arguments("", values, PlanConfig))


def check_audits(*overrides: str) -> AuditConfig:
    config = resolve_config(composed("audit", "run=x", *overrides)) | {"data": None}
    return AuditConfig(**check_arguments("", config, AuditConfig))


def check_settings(config: DictConfig) -> None:
    """Checks a training config as the command does, and builds each part that needs no file."""
    for _, phase in phase_configs(resolve_config(config)):
        check_phase(build_settings(phase, world_size=1 if config.strategy.name == "single" else 2))


def check_phase(settings: TrainConfig) -> None:
    assert settings.task.build().loss_weights
    assert settings.data.build()
    assert settings.optimizer.build().group
    task = settings.task.build()
    task.allows_augmentation = True
    assert (settings.augmentation is None) == (build_augmentation(settings.augmentation, task) is None)
    assert settings.regularization.build().weights(settings.task.build())
    token_steps = TokenSteps(mean_length=1000.0, global_batch_size=5000)
    assert 0.0 < settings.schedule.build(max_steps=10**6, token_steps=token_steps)(500_000) <= 1.0
    if settings.model.arguments:
        assert isinstance(settings.model.build(vocab_size=10), EncoderConfig)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_common_overrides_work_on_every_experiment(experiment):
    overrides = ["trainer.max_steps=7", "strategy=ddp", "precision=bf16", "seed=3", "run.id=mine"]
    overrides += NEEDS.get(f"experiment/{experiment}", [])
    for phase, config in phase_configs(resolve_config(composed("train", f"experiment={experiment}", *overrides))):
        settings = build_settings(config, world_size=2)
        assert (settings.strategy.name, settings.precision.name) == ("ddp", "bf16")
        assert (settings.seed, settings.run.id) == (3, "mine")
        assert (settings.trainer.max_steps == 7) == (phase.name is None), "phases have lengths of their own"


@pytest.mark.parametrize(
    "file", [path for path in FILES if path.parent.name == "model" and path.stem != "from_weights"], ids=name_of
)
def test_model_presets_set_every_shape(file):
    """A preset without a shape would silently use a default."""
    keys = set(resolve_config(composed("train", "experiment=pretrain_demo", f"model={file.stem}"))["model"])
    required = {
        field.name
        for field in fields(EncoderConfig)
        if field.name
        in (
            "family",
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "intermediate_size",
            "max_position_embeddings",
        )
    }
    assert required <= keys


@pytest.mark.parametrize(
    "name", [path.stem for path in FILES if path.parent.name == "data" and "  - _format@format\n" in path.read_text()]
)
def test_data_accepts_null_for_the_format_of_its_files(name):
    config = compose("train", ["experiment=finetune_demo", f"data={name}", "data.format=null"])
    node = OmegaConf.to_container(config.data, resolve=True)
    given = {key: f"{key}.csv" if value == "???" else value for key, value in node.items()}
    assert check_component("data", given).build().format is None
