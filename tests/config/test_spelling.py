"""Text keys get the typed text and number keys its number, on the command line and in a config file."""

from collections.abc import Sequence
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from framework.config.command import resolve_config
from framework.config.command_schema import PredictConfig
from framework.config.nodes import check_arguments, check_value
from framework.config.resolvers import conf_folder, register_resolvers
from framework.config.schema import TrainConfig
from framework.errors import ConfigError
from framework.runs.build import build_settings

EXPERIMENT = [
    *("experiment=finetune_imdb", "logger=none", "data=table", "data.train=rows.csv"),
    *("init_from=null", "model=bert_tiny", "tokenizer=folder", "tokenizer.path=tokenizer"),
]


def composed(name: str, schema: type, overrides: Sequence[str]) -> dict[str, Any]:
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return resolve_config(compose(name, list(overrides)), schema, overrides)


def train(*overrides: str) -> tuple[dict[str, Any], TrainConfig]:
    config = composed("train", TrainConfig, [*EXPERIMENT, *overrides])
    return config, build_settings(config, 1)


@pytest.mark.parametrize("typed", [("42", "7365145", "1234e56"), ("007", "1_000", "1.50"), ("1e5", "nan", "true")])
def test_a_name_is_the_typed_text(typed):
    name, file, metric = typed
    config, settings = train(f"run.id={name}", f"data.train={file}", f"task.best_metric={metric}", f"init_from={file}")
    assert settings.run.id == name and settings.init_from == file
    assert (settings.data.arguments["train"], settings.task.arguments["best_metric"]) == (file, metric)
    # The saved text is the same: the run's identity, and the value that evaluation reads.
    assert (config["run"]["id"], config["data"]["train"], config["task"]["best_metric"]) == typed


def test_names_of_wandb_and_of_files():
    _, settings = train(
        "logger=wandb", "logger.project=1e3", "logger.group=5", "logger.tags=[1,b]", "tokenizer.path=2e2"
    )
    assert (settings.logger.project, settings.logger.group, settings.logger.tags) == ("1e3", "5", ("1", "b"))
    assert settings.tokenizer.path == "2e2"


def test_numbers_null_and_other_values_stay():
    config, settings = train(
        "run.id=null", "optimizer.lr=1e-3", "trainer.max_steps=5", "trainer.max_time=3600", "trainer.gradient_clip=1e1"
    )
    assert settings.run.id is None and config["optimizer"]["lr"] == 0.001
    assert (settings.trainer.max_steps, settings.trainer.max_time, settings.trainer.gradient_clip) == (5, 3600, 10.0)


def test_texts_to_predict():
    for typed in ("2024", "1e5", "true"):
        overrides = ["run=7e3", f"text={typed}", "keep_columns=[1,b]", "columns={text: 5}"]
        settings = PredictConfig(**check_arguments("", composed("predict", PredictConfig, overrides), PredictConfig))
        assert (settings.run, settings.text) == ("7e3", typed)
        assert (tuple(settings.keep_columns), settings.columns) == (("1", "b"), {"text": "5"})


def test_a_config_file_keeps_whole_numbers_and_requires_quotes_for_others():
    assert check_value("run.id", 42, str | None) == "42"
    assert check_value("data.train", [2024, "b"], str | Sequence[str]) == ["2024", "b"]
    assert check_value("trainer.max_time", 3600, str | int | None) == 3600
    with pytest.raises(ConfigError, match=r"`run.id` is 1.234e\+59\. It must be text or null.* needs quotes"):
        check_value("run.id", 1.234e59, str | None)
    with pytest.raises(ConfigError, match=r"`run\.id` is True\. It must be text"):
        check_value("run.id", True, str | None)
