"""Builds the objects of a run from validated settings. Reads files and uses no device."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from framework.config.checks import (
    check_compiled_items,
    check_enough_sequences,
    check_evaluated_splits,
    check_relative_bias,
    check_sequence_lengths,
    check_settings,
    check_task_is_split,
    check_tensor_parallel,
    check_vocabulary,
)
from framework.config.nodes import check_arguments
from framework.config.schema import TokenizerConfig, TrainConfig
from framework.data.planning.batch_size import TokenSteps
from framework.data.planning.plan import SequenceSource, steps_per_epoch
from framework.data.tokenization.extension import pieces_of_new_tokens
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.precision import Precision, multiplies_bf16
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.freezing import freeze
from framework.modules.encoder_module import EncoderModule
from framework.modules.passes.embedding_distillation import EmbeddingDistillation
from framework.modules.passes.private import PrivateSteps
from framework.modules.passes.regularization import Regularization
from framework.optim.combined import CombinedOptimizer
from framework.published.chosen_layers import with_layers
from framework.published.new_rows import with_new_rows
from framework.published.pretrained import PATCH_EMBEDDINGS, PretrainedWeights, match_parameters
from framework.published.starting_head import fit_head
from framework.published.tiling import tiled
from framework.runs.augmenting import augmented, build_augmentation, check_word_samples
from framework.runs.length import run_length, token_steps_of
from framework.runs.privacy import Privacy, build_privacy, check_privacy
from framework.runs.privacy_units import private_items, reading_units
from framework.runs.task_parts import build_data_component, build_model
from framework.runs.teaching import build_regularization
from framework.runs.weights import find_weights, followed_weights, starting_values
from framework.tasks.probing.probe import Probe, ProbeSettings
from framework.tasks.task import Task, TaskModel

_GROUPS_OR_NONE = ("adapter", "augmentation", "privacy")
"""Config groups whose option `none` is an empty mapping."""


@dataclass(frozen=True)
class Parts:
    """Components of a run before it uses a device.

    Attributes:
        tokenizer: Tokenizer of the data and of the export.
        config: Encoder configuration, complete.
        task: Task, which defines loss, head and metrics.
        sources: Sequences, by split.
        weights: Starting weights, unused if the run resumes; None: fresh weights from the seed.
        model: Encoder and head on the meta device.
        token_steps: Sequences per optimizer step over all ranks, their growth, and conversion of steps to tokens.
        max_steps: Step of the run after which these components have trained; without phases the steps of the run.
        validate_every_n_steps: Interval of validations in steps; None: there is no validation split.
        probes: Probes that are fitted to the features of the encoder, by name.
        privacy: Guarantee and secret of a private run; None: the run is not private.
        first_step: Steps of the run before these components train, which is 0 except in later phases.
        regularization: Additional passes of a step, with the teacher of a distillation; None: none.
    """

    tokenizer: Tokenizer
    config: EncoderConfig
    task: Task
    sources: Mapping[str, SequenceSource]
    weights: PretrainedWeights | None
    model: TaskModel
    token_steps: TokenSteps
    max_steps: int
    validate_every_n_steps: int | None
    probes: Mapping[str, Probe]
    privacy: Privacy | None = None
    first_step: int = 0
    regularization: Regularization | EmbeddingDistillation | None = None


def build_settings(config: Mapping[str, Any], world_size: int) -> TrainConfig:
    """Checks a composed config before any file is read, and returns its settings.

    Args:
        config: Config in plain containers, interpolations resolved.
        world_size: Number of processes.

    Raises:
        ConfigError: A key is unknown or missing, a value has the wrong type, or two values exclude each other.
    """
    settings = TrainConfig(
        **check_arguments("", {**config, **{key: config.get(key) or None for key in _GROUPS_OR_NONE}}, TrainConfig)
    )
    check_settings(settings, world_size)
    check_privacy(settings)
    return settings


def _check_sources(
    settings: TrainConfig, sources: Mapping[str, SequenceSource], config: EncoderConfig, data_parallel_size: int
) -> None:
    """Checks that the sequences fit the strategy, the model, the number of processes and early stopping."""
    check_compiled_items(settings, sources)
    check_sequence_lengths(sources, config)
    check_enough_sequences(sources, data_parallel_size)
    check_evaluated_splits(settings.trainer, sources)


def _check_tensor_parallel(settings: TrainConfig, config: EncoderConfig, task: Task, world_size: int) -> None:
    """Checks that encoder and head can be split over the ranks that share matrix products."""
    size = settings.strategy.shape(world_size).tensor
    check_tensor_parallel(config, size, world_size)
    check_relative_bias(config, settings.strategy.compile, size)
    check_task_is_split(task, size)


def _find_starting_weights(settings: TrainConfig) -> PretrainedWeights | None:
    if settings.init_from is None:
        return None
    runs = Path(settings.run.dir)
    weights = find_weights(settings.init_from, runs, settings.init_weights, settings.init_average_last)
    return weights if settings.init_layers is None else with_layers(weights, settings.init_layers)


def build_parts(settings: TrainConfig, world_size: int, earlier: Parts | None = None) -> Parts:
    """Reads tokenizer, data and starting weights, builds task and model, and checks that they fit each other.

    Args:
        settings: Settings of the run, or of one of its phases.
        world_size: Number of processes.
        earlier: Components of the phase before, whose starting weights are kept in memory once for all phases; None:
            this is the first phase.

    Raises:
        FrameworkError: A file cannot be used, or two parts do not fit each other.
    """
    weights = _find_starting_weights(settings) if earlier is None else earlier.weights
    tokenizer = build_tokenizer(settings.tokenizer, weights, settings.extend_vocabulary)
    if earlier is None and weights is not None and settings.extend_vocabulary:
        weights = extend_vocabulary(weights, tokenizer)
    task: Task = settings.task.build()
    config = build_encoder_config(settings, tokenizer, weights, task)
    if earlier is None and weights is not None and settings.init_tiling:
        weights = tiled(weights, config)
    check_vocabulary(tokenizer, config, weights)
    shape = settings.strategy.shape(world_size)
    _check_tensor_parallel(settings, config, task, world_size)
    augmentation = build_augmentation(settings.augmentation, task)
    data = reading_units(build_data_component(task, settings.data), settings.privacy)
    sources = _with_training_split(task.build_sources(data, tokenizer, settings.seed))
    if augmentation is not None:
        check_word_samples(augmentation, weights, config)
        sources = augmented(sources, augmentation, task, tokenizer, settings.seed)
    items = private_items(settings, task, sources["train"])
    if items is not None:
        sources = {**sources, "train": items.source}
    _check_sources(settings, sources, config, shape.data_parallel_size)
    model = build_model(task, config, settings.adapter)
    before = None if earlier is None else earlier.regularization
    regularization = build_regularization(settings, shape.tensor, task, tokenizer, sources, model, before)
    freeze(model, settings.trainer.freeze, "trainer.freeze")
    if earlier is None and weights is not None:
        weights = _fitted(weights, task, model)
    token_steps = token_steps_of(settings.trainer, sources["train"])
    size, num_sequences = token_steps.global_batch_size, len(sources["train"])
    every = settings.trainer.val_every_n_steps or steps_per_epoch(num_sequences, size)
    first_step = 0 if earlier is None else earlier.max_steps
    max_steps = first_step + run_length(settings.trainer, token_steps, num_sequences, task.wraps_epochs)
    return Parts(
        tokenizer,
        config,
        task,
        sources,
        weights,
        model,
        token_steps=token_steps,
        max_steps=max_steps,
        validate_every_n_steps=every if "validation" in sources else None,
        probes=build_probes(settings.probes, tokenizer, config),
        privacy=build_privacy(settings, task, items, model, size, max_steps),
        first_step=first_step,
        regularization=regularization,
    )


def _fitted(weights: PretrainedWeights, task: Task, model: TaskModel) -> PretrainedWeights:
    """Returns the starting weights that fit the task, and checks the parameters that start from fresh values."""
    weights = fit_head(weights, task.head_kind, task.to_record())
    _check_new_weights(task, model, weights)
    return weights


def _with_training_split(sources: dict[str, SequenceSource]) -> dict[str, SequenceSource]:
    if "train" not in sources:
        raise ConfigError("the data has no split `train`. Training needs one. Give `data.train`.")
    return sources


def build_probes(probes: Mapping[str, ProbeSettings], tokenizer: Tokenizer, config: EncoderConfig) -> dict[str, Probe]:
    """Builds all probes, which reads their texts.

    Raises:
        FrameworkError: A file or row cannot be used, a probe has no split to measure on, or its texts may be longer
            than the encoder allows.
    """
    built = {name: settings.build(tokenizer) for name, settings in probes.items()}
    for name, probe in built.items():
        check_sequence_lengths({f"probes.{name}, {split}": each for split, each in probe.sources.items()}, config)
    return built


def build_tokenizer(
    settings: TokenizerConfig, weights: PretrainedWeights | None, extends_vocabulary: bool = False
) -> Tokenizer:
    """Reads the tokenizer of the config, else that of the starting weights, else the fallback.

    Args:
        settings: Tokenizer settings.
        weights: Starting weights.
        extends_vocabulary: True if the tokenizer may have more tokens than that of the weights.

    Raises:
        ConfigError: None of them exists, or the tokenizer of the config has other ids than that of the weights.
    """
    own = weights.tokenizer_dir if weights is not None else None
    folder = settings.path or own or settings.fallback
    if folder is None:
        source = weights.source if weights is not None else None
        raise ConfigError(
            f"`tokenizer.path` is null, and init_from={source} contains no tokenizer.json and no vocab.txt. A run "
            "requires a tokenizer. Set `tokenizer.path`. From a SentencePiece file, transformers writes tokenizer.json "
            "(AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))."
        )
    tokenizer = Tokenizer.from_folder(folder)
    if weights is None or own is None or extends_vocabulary:
        return tokenizer
    if not tokenizer.same_ids(Tokenizer.from_folder(own)):
        raise ConfigError(
            f"tokenizer.path={folder} has other ids than the tokenizer of init_from={weights.source}. Weights work "
            "only with the ids that they were trained with. Use tokenizer=from_weights. To continue pre-training, "
            "prepare a store with the vocabulary of the weights: "
            f"python -m framework.prepare vocabulary=given vocabulary.path={own} store=FOLDER. If the tokenizer only "
            "has new tokens after the old ones, set extend_vocabulary=true."
        )
    return tokenizer


def extend_vocabulary(weights: PretrainedWeights, tokenizer: Tokenizer) -> PretrainedWeights:
    """Returns the starting weights with rows for the new tokens of a tokenizer.

    Raises:
        ConfigError: The weights have no tokenizer, their tokenizer has ids without a row, or the tokenizer is not an
            extension of it.
    """
    if weights.tokenizer_dir is None:
        raise ConfigError(
            f"`extend_vocabulary` is true, but init_from={weights.source} contains no tokenizer. A new row starts from "
            "the rows of the token's old pieces, which the old tokenizer finds. Add the files of the old tokenizer to "
            "the folder of the weights."
        )
    old = Tokenizer.from_folder(weights.tokenizer_dir)
    check_vocabulary(old, weights.config, weights)
    pieces = pieces_of_new_tokens(old, tokenizer)
    return with_new_rows(weights, tokenizer.vocab_size, pieces, old.ordinary_ids.tolist())


def build_encoder_config(
    settings: TrainConfig, tokenizer: Tokenizer, weights: PretrainedWeights | None, task: Task
) -> EncoderConfig:
    """Completes the model's config from the weights, or the vocabulary size from the tokenizer.

    The task decides whether the encoder reads pictures. New patch embeddings are added to the weights of an encoder
    that read none.

    Raises:
        ConfigError: A value is invalid, or the task reads patches of another size than the encoder.
    """
    supplied = weights.config.record() if weights is not None else {"vocab_size": tokenizer.vocab_size}
    config: EncoderConfig = settings.model.build(**{**supplied, "patch_size": task.patch_size})
    trained = supplied.get("patch_size") or config.patch_size
    if task.patch_size and trained != task.patch_size:
        raise ConfigError(
            f"task.patch_size is {task.patch_size}, but the encoder reads patches of {trained} pixels. Patch "
            f"embeddings fit one size. Set task.patch_size={trained}."
        )
    return config


def _check_new_weights(task: Task, model: TaskModel, weights: PretrainedWeights) -> None:
    """Checks the parameters that the starting weights lack.

    Raises:
        ConfigError: The task requires one of them; or patch embeddings are frozen at random values, by `trainer.freeze`
            or by an adapter.
    """
    new = match_parameters(model, weights)[1]
    for prefix, reason in task.required_weights.items():
        missing = next((name for name in new if name.startswith(prefix)), None)
        if missing is not None:
            raise ConfigError(f"{weights.source} has no {missing}. {reason}")
    parameters = dict(model.named_parameters())
    frozen = [name for name in new if PATCH_EMBEDDINGS in name and not parameters[name].requires_grad]
    if frozen:
        raise ConfigError(
            f"{frozen[0]} has no weights in init_from and is frozen, so it would stay random. New patch embeddings "
            'must be trained. Add "encoder.embeddings.patch_embeddings.*" to adapter.train_also, or take it out of '
            "trainer.freeze."
        )


def build_module(settings: TrainConfig, parts: Parts, precision: Precision, device_type: str) -> EncoderModule:
    """Builds the LightningModule of a run, its weights still on the meta device."""
    native = precision.compute_dtype == torch.bfloat16 and multiplies_bf16(device_type)
    optimizer = settings.optimizer.build()

    def build_optimizer(model: TaskModel) -> CombinedOptimizer:
        built = optimizer.build(
            model.named_parameters(),
            # The query, key and value projections of a layer are one parameter of three matrices.
            {"*.attention.qkv.weight": (parts.config.num_heads, 3)},
            torch.bfloat16 if native else torch.float32,
        )
        parameters = dict(model.named_parameters())
        pairs = [(parameters[one], parameters[other]) for one, other in followed_weights(model).items()]
        built.follow(pair for pair in pairs if all(weight.requires_grad for weight in pair))
        if settings.trainer.ema_decay is not None:
            built.keep_average(settings.trainer.ema_decay)
        return built

    schedule = settings.schedule.build(max_steps=parts.max_steps - parts.first_step, token_steps=parts.token_steps)
    module = EncoderModule(
        model=parts.model,
        task=parts.task,
        seed=settings.seed,
        precision=precision,
        initial_values=starting_values(parts.weights, parts.config, settings.seed),
        build_optimizer=build_optimizer,
        schedule=lambda step: schedule(step - parts.first_step),
        max_grad_norm=settings.trainer.max_grad_norm,
        activation_checkpointing=settings.strategy.activation_checkpointing,
        sharding=settings.strategy,
        compile_backend=settings.strategy.compile,
        regularization=parts.regularization,
    )
    if parts.privacy is not None:
        module.make_private(PrivateSteps(parts.privacy.guarantee, parts.privacy.secret))
    return module
