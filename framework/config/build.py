"""From checked settings to the objects of a run. Reads files, touches no device."""

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from framework.config.augmenting import augmented, check_word_samples
from framework.config.checks import (
    check_compiled_items,
    check_early_stopping,
    check_enough_sequences,
    check_regularization,
    check_sequence_lengths,
    check_settings,
    check_task_is_split,
    check_tensor_parallel,
    check_vocabulary,
)
from framework.config.nodes import Component, check_arguments
from framework.config.schema import TokenizerConfig, TrainConfig, TrainerConfig
from framework.config.weights import find_weights, starting_values
from framework.data.planning.batch_size import sequences_of, steps_until
from framework.data.planning.plan import SequenceSource, steps_per_epoch
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.precision import Precision, multiplies_bf16
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.models.freezing import freeze, freeze_others
from framework.modules.encoder_module import EncoderModule
from framework.nn.lora import LORA_PARAMETERS, LoraSettings, apply_lora
from framework.optim.combined import CombinedOptimizer
from framework.published.pretrained import PretrainedWeights, match_parameters
from framework.published.starting_head import fit_head
from framework.tasks.probing.probe import Probe, ProbeSettings
from framework.tasks.task import Task, TaskModel

_GROUPS_OR_NONE = ("adapter", "augmentation")
"""Groups of which `none` is an option, and empty."""


@dataclass(frozen=True)
class Parts:
    """What a run is made of, before it has a device.

    Attributes:
        tokenizer: Of data and export.
        config: Of the encoder, complete.
        task: States loss, head and metrics.
        sources: The sequences of each split.
        weights: Where weights start unless the run resumes; None: fresh from the seed.
        model: On the meta device.
        global_batch_size: Sequences of an optimizer step over all ranks, once the batch has grown.
        max_steps: Optimizer steps of the whole run.
        validate_every_n_steps: None: there is nothing to validate on.
        probes: What is read off the encoder's features, by name.
    """

    tokenizer: Tokenizer
    config: EncoderConfig
    task: Task
    sources: Mapping[str, SequenceSource]
    weights: PretrainedWeights | None
    model: TaskModel
    global_batch_size: int
    max_steps: int
    validate_every_n_steps: int | None
    probes: Mapping[str, Probe]


def build_settings(config: Mapping[str, Any], world_size: int) -> TrainConfig:
    """Checks a composed config as a whole, before any file is read.

    Args:
        config: Plain containers, interpolations resolved.
        world_size: Processes in all.

    Raises:
        ConfigError: A key is unknown or missing, a value has the wrong type, or two values cannot go together.
    """
    settings = TrainConfig(
        **check_arguments("", {**config, **{key: config.get(key) or None for key in _GROUPS_OR_NONE}}, TrainConfig)
    )
    check_settings(settings, world_size)
    return settings


def build_parts(settings: TrainConfig, world_size: int) -> Parts:
    """Reads tokenizer, data and starting weights, builds task and model, and checks that they go together.

    Raises:
        FrameworkError: A file cannot be used, or two parts do not fit each other.
    """
    weights = None
    if settings.init_from is not None:
        runs = Path(settings.run.dir)
        weights = find_weights(settings.init_from, runs, settings.init_weights, settings.init_average_last)
    tokenizer = build_tokenizer(settings.tokenizer, weights)
    config = build_encoder_config(settings, tokenizer, weights)
    check_vocabulary(tokenizer, config, weights)
    shape = settings.strategy.shape(world_size)
    task: Task = settings.task.build()
    check_tensor_parallel(config, shape.tensor)
    check_task_is_split(task, shape.tensor)
    sources = task.build_sources(build_data_component(task, settings.data), tokenizer, settings.seed)
    if settings.augmentation is not None:
        augmentation = settings.augmentation.build()
        check_word_samples(augmentation, weights, config)
        sources = augmented(sources, augmentation, task, tokenizer, settings.seed)
    check_compiled_items(settings, sources)
    check_sequence_lengths(sources, config)
    check_enough_sequences(sources, shape.data_parallel_size)
    check_early_stopping(settings.trainer, sources)
    model = build_model(task, config, settings.adapter)
    check_regularization(settings.regularization.build(), task, model)
    freeze(model, settings.trainer.freeze, "trainer.freeze")
    if weights is not None:
        weights = fit_head(weights, task.head_kind, task.side_config())
        match_parameters(model, weights)
    size = resolve_global_batch_size(settings.trainer, sources["train"])
    num_sequences = len(sources["train"])
    every = settings.trainer.val_every_n_steps or steps_per_epoch(num_sequences, size)
    return Parts(
        tokenizer,
        config,
        task,
        sources,
        weights,
        model,
        global_batch_size=size,
        max_steps=run_length(settings.trainer, size, num_sequences, task.wraps_epochs),
        validate_every_n_steps=every if "validation" in sources else None,
        probes=build_probes(settings.probes, tokenizer, config),
    )


def build_probes(probes: Mapping[str, ProbeSettings], tokenizer: Tokenizer, config: EncoderConfig) -> dict[str, Probe]:
    """Reads the texts of all probes.

    Raises:
        FrameworkError: A file or row cannot be used, there is nothing to measure on, or texts may be too long.
    """
    built = {name: settings.build(tokenizer) for name, settings in probes.items()}
    for name, probe in built.items():
        check_sequence_lengths({f"probes.{name}, {split}": each for split, each in probe.sources.items()}, config)
    return built


def build_data_component(task: Task, data: Component) -> Any:
    """The data of a config, which must be of the kind that the task reads.

    Raises:
        ConfigError: It is of another kind.
    """
    built = data.build()
    wanted = data_kind(type(task))
    if not isinstance(built, wanted):
        raise ConfigError(
            f"{type(task).__name__} reads {wanted.__name__}, but `data` is {type(built).__name__}; choose other `data` "
            "or another `task`."
        )
    return built


def data_kind(task: type[Task]) -> type:
    """Returns the class of the data that a task reads; object if its signature does not name one."""
    hint = typing.get_type_hints(task.build_sources).get("data", Any)
    # Any is a class, of which nothing is an instance.
    return hint if isinstance(hint, type) and hint is not Any else object


def resolve_global_batch_size(trainer: TrainerConfig, source: SequenceSource) -> int:
    """Sequences of an optimizer step, from the tokens of one where these are given."""
    if trainer.global_batch_size is not None:
        return trainer.global_batch_size
    assert trainer.global_batch_tokens is not None
    return sequences_of(trainer.global_batch_tokens, source.mean_length)


def run_length(trainer: TrainerConfig, size: int, num_sequences: int, wraps_epochs: bool) -> int:
    """Steps of the run; where steps cross epoch ends, only the last one is rounded up."""
    if trainer.max_steps is not None:
        return trainer.max_steps
    assert trainer.max_epochs is not None
    if wraps_epochs:
        return steps_until(num_sequences * trainer.max_epochs, size, trainer.batch_warmup)
    return steps_per_epoch(num_sequences, size) * trainer.max_epochs


def build_tokenizer(settings: TokenizerConfig, weights: PretrainedWeights | None) -> Tokenizer:
    """Reads the tokenizer that the config names, else the one that came with the weights, else the fallback.

    Raises:
        ConfigError: There is none, or the named one is not that of the weights.
    """
    own = weights.tokenizer_dir if weights is not None else None
    folder = settings.path or own or settings.fallback
    if folder is None:
        source = weights.source if weights is not None else None
        raise ConfigError(
            f"`tokenizer.path` is null, and init_from={source} brings no tokenizer; set `tokenizer.path`."
        )
    tokenizer = Tokenizer.from_folder(folder)
    if weights is not None and own is not None and not tokenizer.same_ids(Tokenizer.from_folder(own)):
        raise ConfigError(
            f"tokenizer.path={folder} is another tokenizer than the one of init_from={weights.source}, whose weights "
            "know other ids; use tokenizer=from_weights. To pre-train them further, prepare a store with their "
            f"vocabulary: python -m framework.prepare vocabulary=given vocabulary.path={own} store=FOLDER."
        )
    return tokenizer


def build_encoder_config(
    settings: TrainConfig, tokenizer: Tokenizer, weights: PretrainedWeights | None
) -> EncoderConfig:
    """Completes the model's config from the weights, or the vocabulary size from the tokenizer."""
    supplied = asdict(weights.config) if weights is not None else {"vocab_size": tokenizer.vocab_size}
    return settings.model.build(**supplied)


def build_model(task: Task, config: EncoderConfig, adapter: LoraSettings | None = None) -> TaskModel:
    """Encoder and head on the meta device: shapes and no memory. With an adapter all but what it trains is frozen.

    Raises:
        ConfigError: The adapter asks for what the model has not.
    """
    with torch.device("meta"):
        encoder = TransformerEncoder(config)
        model = TaskModel(encoder, task.build_head(encoder, config))
        if adapter is not None:
            apply_lora(encoder.layers, config.num_heads, adapter)
            freeze_others(model, (*LORA_PARAMETERS, *adapter.train_also), "adapter.train_also")
    return model


def build_module(settings: TrainConfig, parts: Parts, precision: Precision, device_type: str) -> EncoderModule:
    """Builds the LightningModule of a run, still without memory for its weights."""
    native = precision.compute_dtype == torch.bfloat16 and multiplies_bf16(device_type)
    optimizer = settings.optimizer.build()

    def build_optimizer(model: TaskModel) -> CombinedOptimizer:
        built = optimizer.build(
            model.named_parameters(),
            # The query, key and value maps of a layer are one parameter of three matrices.
            {"*.attention.qkv.weight": (parts.config.num_heads, 3)},
            torch.bfloat16 if native else torch.float32,
        )
        if settings.trainer.ema_decay is not None:
            built.keep_average(settings.trainer.ema_decay)
        return built

    return EncoderModule(
        model=parts.model,
        task=parts.task,
        seed=settings.seed,
        precision=precision,
        initial_values=starting_values(parts.weights, parts.config, settings.seed),
        build_optimizer=build_optimizer,
        schedule=settings.schedule.build(max_steps=parts.max_steps),
        max_grad_norm=settings.trainer.max_grad_norm,
        activation_checkpointing=settings.strategy.activation_checkpointing,
        sharding=settings.strategy,
        compile_backend=settings.strategy.compile,
        regularization=settings.regularization.build(),
    )
