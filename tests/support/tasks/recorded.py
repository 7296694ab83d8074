"""Configs of tasks as runs record them."""

from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from framework.config.resolvers import conf_folder, register_resolvers


def recorded(name: str) -> dict[str, Any]:
    """Returns the config of a task as a run records it."""
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("train", [f"task={name}"]).task, resolve=True)  # type: ignore[return-value]
