"""Where weights start: a run, a checkpoint, an export or published weights, all read into one form on the CPU.

The order of starts, stated once: the run's newest complete checkpoint (see run_folder.py) > `init_from` (here) > fresh values
from the seed (framework.nn.initialization).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.checkpoint.load import read_full_state
from framework.config.run_folder import CONFIG_FILE, TOKENIZER_FOLDER, find_checkpoint, read_config
from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.models.pretrained import load_pretrained
from framework.nn.initialization import initial_values
from framework.tasks.task import TaskModel

ARCHITECTURE_KEYS = (
    "hidden_size",
    "num_layers",
    "num_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "vocab_size",
    "position_encoding",
    "position_offset",
    "rope_theta_global",
    "rope_theta_local",
    "local_attention_window",
    "global_attention_every",
    "norm_placement",
    "activation",
    "gated",
    "bias",
    "norm_bias",
)
"""Keys without which the same numbers would be another function; dropout and initialisation are free."""


@dataclass(frozen=True)
class StartingWeights:
    """Weights to start from, or to evaluate.

    Attributes:
        source: What was asked for, for messages.
        config: Of the encoder that they belong to.
        tensors: Full fp32 values by parameter name of a TaskModel ("encoder...", "head...").
        tokenizer_folder: The tokenizer that belongs to them; None where none came along.
        side: What an export keeps beside the weights: the task and what it needs to read predictions.
    """

    source: str
    config: EncoderConfig
    tensors: Mapping[str, Tensor]
    tokenizer_folder: Path | None
    side: Mapping[str, Any] = field(default_factory=dict)


def find_weights(source: str, runs: Path) -> StartingWeights:
    """Reads weights from a run (id or folder), a checkpoint, an export, a Hugging Face folder or hub name.

    Args:
        source: A run id below `runs`, or a path, or a name on the Hugging Face hub.
        runs: The folder that holds the run folders.

    Raises:
        CheckpointError: Nothing is found there, or it cannot be read.
    """
    for folder in (runs / source, Path(source), Path(source).parent.parent):
        if (folder / CONFIG_FILE).is_file():
            return _from_run(source, folder, Path(source) if folder == Path(source).parent.parent else folder)
    if source.startswith((".", "/", "~")) and not Path(source).is_dir():
        raise CheckpointError(f"{source} is not there; give a run id, a folder, or a name on the Hugging Face hub.")
    published = load_pretrained(source)
    tensors = {f"encoder.{name}": tensor for name, tensor in published.encoder.items()}
    tensors.update({f"head.{name}": tensor for name, tensor in published.heads.items()})
    return StartingWeights(source, published.config, tensors, published.tokenizer_dir, published.side)


def _from_run(source: str, folder: Path, checkpoint: Path) -> StartingWeights:
    config = read_config(folder)
    return StartingWeights(
        source,
        EncoderConfig(**config["model"]),
        read_full_state(find_checkpoint(checkpoint)),
        folder / TOKENIZER_FOLDER,
        {"task": config["task"]},
    )


def check_weights_fit(weights: StartingWeights, config: EncoderConfig, model: TaskModel) -> None:
    """Checks that weights can start a model, before memory is spent.

    Raises:
        CheckpointError: An architecture key or a shape differs; the message names it and both values.
    """
    for name in ARCHITECTURE_KEYS:
        there, here = getattr(weights.config, name), getattr(config, name)
        if there != here:
            raise CheckpointError(
                f"init_from={weights.source} has model.{name}={there}, but this config has {here}; "
                "choose the model that the weights belong to (`model=from_weights` takes it from them)."
            )
    for name, parameter in model.named_parameters():
        tensor = weights.tensors.get(name)
        if tensor is not None and tensor.shape != parameter.shape and not name.startswith("head."):
            raise CheckpointError(
                f"init_from={weights.source} has {name} of shape {tuple(tensor.shape)}, but this model wants {tuple(parameter.shape)}; "
                "choose the model that the weights belong to."
            )


def starting_values(
    weights: StartingWeights | None, config: EncoderConfig, seed: int
) -> Callable[[TaskModel], Iterator[tuple[str, Callable[[], Tensor]]]]:
    """What `EncoderModule` takes: from a model to a maker of each parameter's full value.

    Args:
        weights: Values that take precedence over fresh ones where name and shape agree.
        config: Of the encoder.
        seed: Of fresh values.
    """

    def values(model: TaskModel) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        given = weights.tensors if weights is not None else {}
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        for name, fresh in initial_values(model, config, seed):
            tensor = given.get(name)
            if tensor is None or tensor.shape != shapes[name]:
                yield name, fresh
            else:
                yield name, tensor.to(torch.float32).clone
    return values
