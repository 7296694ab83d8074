"""Rules that hold between parts of a config. Each raises one error that names the keys, their values and the remedy."""

from collections.abc import Mapping
from pathlib import Path

import torch

from framework.checkpoint.storage import location
from framework.config.schema import TrainConfig, TrainerConfig
from framework.data.planning.plan import GroupedSequences, SequenceSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.float8 import check_float8
from framework.distributed.parallel.precision import PRECISION_STRATEGIES, Precision
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.modules.passes.one_pass import OnePass
from framework.modules.passes.regularization import Regularization
from framework.published.pretrained import PretrainedWeights
from framework.tasks.step_level import StepLevelTask
from framework.tasks.task import Task, TaskModel

_SHOWN_TOKENS = 5


def check_settings(settings: TrainConfig, world_size: int) -> None:
    """Checks what needs no file: the strategy, and the model's own rules.

    Raises:
        ConfigError: Two values cannot go together.
    """
    settings.strategy.shape(world_size)
    strategies = PRECISION_STRATEGIES.get(settings.precision.name)
    if strategies is not None and settings.strategy.name not in strategies:
        raise ConfigError(
            f"precision={settings.precision.name} runs under strategy={' or strategy='.join(strategies)}, but "
            f"strategy={settings.strategy.name} is asked for; use precision=bf16."
        )
    if settings.adapter is not None:
        _check_adapter(settings)
    if settings.trainer.probe_every_n_steps is not None and not settings.probes:
        raise ConfigError(
            f"`trainer.probe_every_n_steps` is {settings.trainer.probe_every_n_steps}, but there are no `probes` to be "
            "scored; give one, for example +probes.NAME.data.train=FILE, or set it to null."
        )
    arguments = dict(settings.model.arguments)
    if {
        "family",
        "hidden_size",
        "num_layers",
        "num_heads",
        "intermediate_size",
        "max_position_embeddings",
    } <= arguments.keys():
        settings.model.build(vocab_size=1)
    elif settings.init_from is None:
        raise ConfigError(
            "`model` leaves its shape to the weights, but `init_from` is null; choose a `model`, or give `init_from`."
        )
    if settings.tokenizer.path is None and settings.tokenizer.fallback is None and settings.init_from is None:
        raise ConfigError("`tokenizer.path` is null and `init_from` too, so there is no tokenizer; give one of them.")
    named = location(settings.run.resume)
    if settings.run.resume not in ("auto", "never") and isinstance(named, Path) and not named.is_dir():
        raise ConfigError(
            f"`run.resume` is {settings.run.resume!r}, which is no folder; use auto, never, or the path of a run or "
            "checkpoint."
        )


def _check_adapter(settings: TrainConfig) -> None:
    if settings.init_from is None:
        raise ConfigError(
            "`adapter` trains updates of frozen weights, but `init_from` is null, so these would stay random; give the "
            "weights to start from, or use adapter=none."
        )
    if settings.strategy.name in ("tp", "fsdp2_tp"):
        raise ConfigError(
            f"`adapter` has updates that cannot be split over ranks, but strategy={settings.strategy.name} splits "
            "each map; use strategy=fsdp2, or adapter=none."
        )
    if settings.precision.name == "float8":
        raise ConfigError(
            "`adapter` has maps that precision=float8 does not know; use precision=bf16, or adapter=none."
        )


def check_device(settings: TrainConfig, precision: Precision, device_type: str) -> None:
    """Checks the settings that depend on the device: float8 and compiled layers.

    The code of compiled layers must not depend on the lengths of sequences, which holds for attention on CUDA in bf16.

    Raises:
        ConfigError: The device does not support the setting.
    """
    if precision.name == "float8":
        check_float8(device_type)
    if settings.strategy.compile != "none" and (device_type != "cuda" or precision.compute_dtype != torch.bfloat16):
        raise ConfigError(
            f"`strategy.compile` is {settings.strategy.compile}, but here the device is {device_type} and the "
            f"precision {precision.name}, and layers can be compiled on CUDA in bf16 only, whose attention does not "
            "depend on each sequence's length; set `strategy.compile` to none."
        )


def check_compiled_items(settings: TrainConfig, sources: Mapping[str, SequenceSource]) -> None:
    """Fixed shapes have room for a number of items, each of one sequence.

    Raises:
        ConfigError: Layers are to be compiled, and an item of the training data holds several sequences.
    """
    train = sources["train"]
    if settings.strategy.compile != "none" and isinstance(train, GroupedSequences) and train.group_size > 1:
        raise ConfigError(
            f"`strategy.compile` is {settings.strategy.compile}, but items of this task hold up to {train.group_size} "
            "sequences, and fixed shapes are for items of one; set `strategy.compile` to none."
        )


def check_vocabulary(tokenizer: Tokenizer, config: EncoderConfig, weights: PretrainedWeights | None = None) -> None:
    """Checks that every id has an embedding (spare rows are legal) and that a RoBERTa counts from its padding id.

    Raises:
        ConfigError: The tokenizer has more ids than the model or the weights have rows, or pads with an id from which
            its RoBERTa does not count.
    """
    if weights is not None and tokenizer.vocab_size > weights.config.vocab_size:
        _refuse_ids_without_weights(tokenizer, weights)
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer in {tokenizer.folder} has {tokenizer.vocab_size} ids, but "
            f"model.vocab_size={config.vocab_size}; "
            "set model.vocab_size=null to take the tokenizer's, or choose the tokenizer that belongs to the model."
        )
    pad_id = tokenizer.pad_id
    if config.family == "roberta" and not pad_id == config.pad_token_id == config.position_offset - 1:
        raise ConfigError(
            f"the tokenizer in {tokenizer.folder} pads with id {pad_id}, but model.pad_token_id={config.pad_token_id} "
            f"and model.position_offset={config.position_offset}, and a RoBERTa counts positions from its padding; set "
            f"model.pad_token_id={pad_id} and model.position_offset={pad_id + 1}, or choose the tokenizer that belongs "
            "to the model."
        )


def _refuse_ids_without_weights(tokenizer: Tokenizer, weights: PretrainedWeights) -> None:
    rows = weights.config.vocab_size
    without = sorted((token_id, token) for token, token_id in tokenizer.backend.get_vocab().items() if token_id >= rows)
    shown = ", ".join(f"{token!r} ({token_id})" for token_id, token in without[:_SHOWN_TOKENS])
    more = f" and {len(without) - _SHOWN_TOKENS} more" if len(without) > _SHOWN_TOKENS else ""
    is_own = weights.tokenizer_dir is not None and tokenizer.folder == weights.tokenizer_dir
    remedy = (
        "Remove these tokens from the tokenizer's files" if is_own else "Use the tokenizer that belongs to the weights"
    )
    raise ConfigError(
        f"the tokenizer in {tokenizer.folder} has {tokenizer.vocab_size} ids, but the weights of "
        f"init_from={weights.source} have {rows} embeddings. No id may be without one: {shown}{more}. {remedy}, or "
        "train without `init_from`."
    )


def check_sequence_lengths(sources: Mapping[str, SequenceSource], config: EncoderConfig) -> None:
    """No sequence may be longer than the positions that the model has.

    Raises:
        ConfigError: One can be.
    """
    for split, source in sources.items():
        longest = source.max_sequence_length if isinstance(source, GroupedSequences) else source.max_length
        if longest > config.max_sequence_length:
            raise ConfigError(
                f"sequences of {split} may have {longest} tokens, but the model has positions for "
                f"{config.max_sequence_length} "
                f"(model.max_position_embeddings={config.max_position_embeddings}); shorten the sequences of the "
                "task, or choose a model with more positions."
            )


def check_tensor_parallel(config: EncoderConfig, size: int) -> None:
    """Ranks that share products compute whole heads, and each has some words and some intermediate channels.

    Raises:
        ConfigError: The ranks do not divide the heads, or there is too little for all of them.
    """
    if config.num_heads % size:
        fitting = [str(divisor) for divisor in range(1, config.num_heads + 1) if config.num_heads % divisor == 0]
        raise ConfigError(
            f"model.num_heads={config.num_heads} cannot be shared by {size} ranks, since each takes whole heads; set "
            "strategy.tensor_parallel_size (all processes where it is null) to one of "
            f"{', '.join(fitting)}."
        )
    for name in ("intermediate_size", "vocab_size"):
        value = getattr(config, name)
        part = -(-value // size)
        if (size - 1) * part >= value:
            raise ConfigError(
                f"model.{name}={value} cannot be shared by {size} ranks, since parts of {part} leave nothing for the "
                "last one; lower strategy.tensor_parallel_size (all processes where it is null)."
            )


def check_regularization(regularization: Regularization, task: Task, model: TaskModel) -> None:
    """Further passes are made over one micro-batch, whose loss must be its own.

    Raises:
        ConfigError: The task's loss needs the whole step, or the regularization cannot do anything for task and model.
    """
    if isinstance(task, StepLevelTask) and not isinstance(regularization, OnePass):
        raise ConfigError(
            f"the loss of {type(task).__name__} needs all sequences of a step at once, but regularization="
            f"{type(regularization).__name__} makes its passes over one micro-batch; choose regularization=none."
        )
    regularization.check(task, model)


def check_task_is_split(task: Task, size: int) -> None:
    """Tensor parallel must know the parts of the task's head.

    Raises:
        ConfigError: It does not.
    """
    if size > 1 and not task.allows_tensor_parallel:
        raise ConfigError(
            f"{type(task).__name__} has a decoder, which {size} ranks cannot share; choose strategy=ddp, fsdp2 or hsdp "
            "instead of tp or fsdp2_tp."
        )


def check_enough_sequences(sources: Mapping[str, SequenceSource], num_ranks: int) -> None:
    """Every rank that reads data of its own needs a training sequence.

    Raises:
        ConfigError: There are fewer than ranks.
    """
    count = len(sources["train"])
    if count < num_ranks:
        raise ConfigError(
            f"there are {count} training sequences for {num_ranks} ranks; start fewer processes, or give more data."
        )


def check_early_stopping(trainer: TrainerConfig, sources: Mapping[str, SequenceSource]) -> None:
    """What ends a run when its validation gets no better needs a validation.

    Raises:
        ConfigError: There is no validation split.
    """
    if trainer.early_stopping_patience is not None and "validation" not in sources:
        raise ConfigError(
            f"`trainer.early_stopping_patience` is {trainer.early_stopping_patience}, but the data has no validation "
            f"split, only {', '.join(sources)}; give one, or set it to null."
        )
