"""Builds the model and the data of a task, for training and for the use of trained models."""

import typing
from typing import Any

import torch

from framework.config.nodes import Component
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.models.freezing import freeze_others
from framework.nn.lora import LORA_PARAMETERS, LoraSettings, apply_lora
from framework.tasks.task import Task, TaskModel


def build_data_component(task: Task, data: Component) -> Any:
    """Builds the data of a config and checks that the task can read it.

    Raises:
        ConfigError: The task reads data of another class.
    """
    built = data.build()
    expected = data_kind(type(task))
    if not isinstance(built, expected):
        raise ConfigError(
            f"`data` is {type(built).__name__}, but {type(task).__name__} reads {expected.__name__}. Choose other "
            "`data` or another `task`."
        )
    return built


def data_kind(task: type[Task]) -> type:
    """Returns the class of the data that a task reads; object if its signature does not name one."""
    hint = typing.get_type_hints(task.build_sources).get("data", Any)
    # isinstance() rejects typing.Any.
    return hint if isinstance(hint, type) and hint is not Any else object


def build_model(task: Task, config: EncoderConfig, adapter: LoraSettings | None = None) -> TaskModel:
    """Builds encoder and head on the meta device, where they have shapes but use no memory.

    With an adapter, all parameters that it does not train are frozen.

    Raises:
        ConfigError: The adapter names a linear layer or parameter that the model does not have.
    """
    with torch.device("meta"):
        encoder = TransformerEncoder(config)
        model = TaskModel(encoder, task.build_head(encoder, config))
        if adapter is not None:
            apply_lora(encoder.layers, config.num_heads, adapter)
            freeze_others(model, (*LORA_PARAMETERS, *adapter.train_also), "adapter.train_also")
    return model
