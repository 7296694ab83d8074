"""Modes of activation checkpointing, and settings composed from overrides."""

from typing import Any

from hydra import compose, initialize_config_dir

from framework.config.command import resolve_config
from framework.config.resolvers import conf_folder, register_resolvers
from framework.config.schema import TrainConfig
from framework.distributed.parallel.activation_checkpoint import ActivationCheckpointing
from framework.runs.build import build_settings

NONE = ActivationCheckpointing()
FULL = ActivationCheckpointing("full")
SELECTIVE = ActivationCheckpointing("selective")
EVERY_SECOND = ActivationCheckpointing("full", 2)


def composed(*overrides: str) -> tuple[dict[str, Any], TrainConfig]:
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = resolve_config(compose("train", ["experiment=pretrain_demo", "strategy=single", *overrides]))
    return config, build_settings(config, world_size=1)
