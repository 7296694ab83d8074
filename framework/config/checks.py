"""Checks of rules between parts of a config. Each raises one error with the keys, their values and the remedy."""

from collections.abc import Mapping
from pathlib import Path

import torch

from framework.checkpoint.storage import location
from framework.config.schema import TrainConfig, TrainerConfig
from framework.data.planning.plan import GroupedSequences, SequenceSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.mesh import divisors, nearest
from framework.distributed.parallel.float8 import check_float8
from framework.distributed.parallel.precision import PRECISION_STRATEGIES, Precision
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.modules.passes.embedding_distillation import EmbeddingDistillation
from framework.modules.passes.one_pass import OnePass
from framework.modules.passes.regularization import Regularization
from framework.published.families import FAMILIES
from framework.published.pretrained import PretrainedWeights
from framework.tasks.step_level import StepLevelTask
from framework.tasks.task import Task, TaskModel

_SHOWN_TOKENS = 5


def check_settings(settings: TrainConfig, world_size: int) -> None:
    """Checks the rules that need no file, such as those of strategy, precision, adapter, model and tokenizer.

    Raises:
        ConfigError: Two values exclude each other.
    """
    settings.strategy.shape(world_size)
    strategies = PRECISION_STRATEGIES.get(settings.precision.name)
    if strategies is not None and settings.strategy.name not in strategies:
        raise ConfigError(
            f"strategy is {settings.strategy.name}, but precision={settings.precision.name} supports only "
            f"strategy={' or strategy='.join(strategies)}. Use one of these, or precision=bf16."
        )
    if settings.adapter is not None:
        _check_adapter(settings)
    if settings.trainer.probe_every_n_steps is not None and not settings.probes:
        raise ConfigError(
            f"`trainer.probe_every_n_steps` is {settings.trainer.probe_every_n_steps}, but `probes` is empty. Add a "
            "probe, for example +probes.NAME.data.train=FILE, or set `trainer.probe_every_n_steps` to null."
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
            "`model` takes its shape from the starting weights, but `init_from` is null. Choose a `model` with a "
            "shape, or set `init_from`."
        )
    if settings.tokenizer.path is None and settings.tokenizer.fallback is None and settings.init_from is None:
        raise ConfigError(
            "`tokenizer.path` and `init_from` are null, so there is no tokenizer. A run requires a tokenizer. Set one "
            "of the two."
        )
    named = location(settings.run.resume)
    if settings.run.resume not in ("auto", "never") and isinstance(named, Path) and not named.is_dir():
        raise ConfigError(
            f"`run.resume` is {settings.run.resume!r}, which is not a folder. It must be auto, never, or the path of a "
            "run or checkpoint. Correct the path."
        )


def _check_adapter(settings: TrainConfig) -> None:
    if settings.init_from is None:
        raise ConfigError(
            "`adapter` is set, but `init_from` is null. An adapter trains updates of frozen weights, which would stay "
            "random. Set `init_from` to pre-trained weights, or use adapter=none."
        )
    if settings.strategy.name in ("tp", "fsdp2_tp"):
        raise ConfigError(
            f"`adapter` is set, but strategy={settings.strategy.name} splits each linear layer over ranks. The updates "
            "of an adapter cannot be split. Use strategy=fsdp2, or adapter=none."
        )
    if settings.precision.name == "float8":
        raise ConfigError(
            "`adapter` is set, but precision=float8 does not support its linear layers. Use precision=bf16, or "
            "adapter=none."
        )


def check_device(settings: TrainConfig, precision: Precision, device_type: str) -> None:
    """Checks the settings that depend on the device: float8, compiled layers and the attention kernel.

    The code of compiled layers must not depend on the lengths of sequences. This is true only for attention on CUDA in
    bf16.

    Raises:
        ConfigError: The device does not support the setting.
    """
    if precision.name == "float8":
        check_float8(device_type)
    is_compiled = settings.strategy.compile not in ("none", "auto")
    if is_compiled and (device_type != "cuda" or precision.compute_dtype != torch.bfloat16):
        raise ConfigError(
            f"`strategy.compile` is {settings.strategy.compile}, but the device is {device_type} and the precision is "
            f"{precision.name}. Layers can be compiled only on CUDA in bf16, because only there the code of attention "
            "does not depend on sequence lengths. Set `strategy.compile` to none."
        )
    is_half = precision.compute_dtype in (torch.bfloat16, torch.float16)
    if settings.strategy.attention != "auto" and (device_type != "cuda" or not is_half):
        raise ConfigError(
            f"`strategy.attention` is {settings.strategy.attention}, but the device is {device_type} and the precision "
            f"is {precision.name}. Its kernels need CUDA and half precision. Set `strategy.attention` to auto."
        )


def check_compiled_items(settings: TrainConfig, sources: Mapping[str, SequenceSource]) -> None:
    """Checks that compiled layers are used only with items of one sequence, for which fixed shapes are planned.

    Raises:
        ConfigError: Layers are compiled, and an item of the training data holds several sequences.
    """
    train = sources["train"]
    is_compiled = settings.strategy.compile not in ("none", "auto")
    if is_compiled and isinstance(train, GroupedSequences) and train.group_size > 1:
        raise ConfigError(
            f"`strategy.compile` is {settings.strategy.compile}, but items of this task hold up to {train.group_size} "
            "sequences. Compiled layers require items of one sequence. Set `strategy.compile` to none."
        )


def obstacle_to_graphs(
    settings: TrainConfig,
    precision: Precision,
    config: EncoderConfig,
    task: Task,
    sources: Mapping[str, SequenceSource],
    world_size: int,
) -> str | None:
    """Returns why training steps on CUDA cannot be captured as graphs; None if they can.

    A captured step reads nothing from the host and waits for nothing, and all its micro-batches have fixed shapes.

    Args:
        settings: Settings of the run.
        precision: Precision of the run, resolved.
        config: Encoder configuration.
        task: Task of the run.
        sources: Sequences, by split.
        world_size: Number of processes.
    """
    train, strategy = sources["train"], settings.strategy
    shape = strategy.shape(world_size)
    group_size = train.group_size if isinstance(train, GroupedSequences) else 1
    obstacles = {
        "attention with a relative bias depends on the lengths of the sequences": config.relative_bias != "none",
        f"the precision is {precision.name} and not bf16": precision.name != "bf16",
        f"strategy={strategy.name} splits weights over ranks": shape.shard * shape.tensor > 1,
        "weights are kept in host memory": strategy.cpu_offload,
        f"the loss of {type(task).__name__} needs all sequences of a step at once": isinstance(task, StepLevelTask),
        f"{type(task).__name__} has a decoder": not task.allows_tensor_parallel,
        f"items of {type(task).__name__} hold several sequences": group_size > 1,
        "private steps need the norms of single rows": settings.privacy is not None,
        "the regularization adds passes": not isinstance(settings.regularization.build(), OnePass),
    }
    return next((reason for reason, applies in obstacles.items() if applies), None)


def check_vocabulary(tokenizer: Tokenizer, config: EncoderConfig, weights: PretrainedWeights | None = None) -> None:
    """Checks that every id has an embedding (spare rows are allowed), and the position offset of some families.

    Raises:
        ConfigError: The tokenizer has more ids than the model or the weights have embedding rows; or the positions of
            a family such as RoBERTa do not begin directly after the padding id of the tokenizer.
    """
    if weights is not None and tokenizer.vocab_size > weights.config.vocab_size:
        _raise_ids_without_weights(tokenizer, weights)
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer in {tokenizer.folder} has {tokenizer.vocab_size} ids, but "
            f"model.vocab_size={config.vocab_size}. Every id requires an embedding. Set model.vocab_size=null to use "
            "the size of the tokenizer, or choose the tokenizer that belongs to the model."
        )
    pad_id = tokenizer.pad_id
    if FAMILIES[config.family].counts_after_padding and not pad_id == config.pad_token_id == config.position_offset - 1:
        raise ConfigError(
            f"the tokenizer in {tokenizer.folder} pads with id {pad_id}, but model.pad_token_id={config.pad_token_id} "
            f"and model.position_offset={config.position_offset}. The family {config.family} counts positions from "
            f"the id after its padding id. Set model.pad_token_id={pad_id} and model.position_offset={pad_id + 1}, or "
            "choose the tokenizer that belongs to the model."
        )


def _raise_ids_without_weights(tokenizer: Tokenizer, weights: PretrainedWeights) -> None:
    rows = weights.config.vocab_size
    without = sorted((token_id, token) for token, token_id in tokenizer.backend.get_vocab().items() if token_id >= rows)
    shown = ", ".join(f"{token!r} ({token_id})" for token_id, token in without[:_SHOWN_TOKENS])
    more = f" and {len(without) - _SHOWN_TOKENS} more" if len(without) > _SHOWN_TOKENS else ""
    is_own = weights.tokenizer_dir is not None and tokenizer.folder == weights.tokenizer_dir
    remedy = (
        "Remove these tokens from the tokenizer's files there; to train them, keep the tokenizer with them in another "
        "folder, and set tokenizer=folder tokenizer.path=FOLDER extend_vocabulary=true"
        if is_own
        else "Use the tokenizer that belongs to the weights; if this one has new tokens, add the files of the old one "
        "to the folder of the weights, and set extend_vocabulary=true"
    )
    raise ConfigError(
        f"the tokenizer in {tokenizer.folder} has {tokenizer.vocab_size} ids, but the weights of "
        f"init_from={weights.source} have {rows} embeddings. These ids have no embedding: {shown}{more}. {remedy}, or "
        "train without `init_from`."
    )


def check_sequence_lengths(sources: Mapping[str, SequenceSource], config: EncoderConfig) -> None:
    """Checks that the model has positions for the longest possible sequence of each split.

    Raises:
        ConfigError: A sequence can be longer.
    """
    for split, source in sources.items():
        longest = source.max_sequence_length if isinstance(source, GroupedSequences) else source.max_length
        if longest > config.max_sequence_length:
            raise ConfigError(
                f"sequences of {split} may have {longest} tokens, but the model has positions for "
                f"{config.max_sequence_length} "
                f"(model.max_position_embeddings={config.max_position_embeddings}). Shorten the sequences of the "
                "task, or choose a model with more positions."
            )


def check_tensor_parallel(config: EncoderConfig, size: int, world_size: int) -> None:
    """Checks that tensor-parallel ranks compute whole heads, and that each has vocabulary rows and channels.

    Args:
        config: Encoder configuration.
        size: Ranks that share matrix products.
        world_size: Number of processes, which the suggested size divides.

    Raises:
        ConfigError: The number of ranks does not divide the number of heads, or the last rank would get no part of the
            vocabulary or of the intermediate channels.
    """
    obstacle = _obstacle_to_tensor_parallel(config, size)
    if obstacle is None:
        return
    fitting = [each for each in divisors(world_size) if _obstacle_to_tensor_parallel(config, each) is None]
    best = nearest(size, fitting)
    remedy = "strategy=fsdp2" if best == 1 else f"strategy=fsdp2_tp strategy.tensor_parallel_size={best}"
    raise ConfigError(f"{obstacle} The nearest setting of {world_size} processes is {remedy}.")


def _obstacle_to_tensor_parallel(config: EncoderConfig, size: int) -> str | None:
    """Returns why a number of ranks cannot share the matrix products of a model; None if they can."""
    if config.num_heads % size:
        return (
            f"model.num_heads={config.num_heads} cannot be split over {size} ranks. Each tensor-parallel rank computes "
            "whole heads."
        )
    for name in ("intermediate_size", "vocab_size"):
        value = getattr(config, name)
        part = -(-value // size)
        if (size - 1) * part >= value:
            return (
                f"model.{name}={value} cannot be split over {size} ranks. With parts of {part}, the last rank would "
                "get nothing."
            )
    return None


def check_relative_bias(config: EncoderConfig, backend: str, tensor_size: int) -> None:
    """Checks that a model with a relative bias runs uncompiled and is not split over tensor-parallel ranks.

    Args:
        config: Encoder configuration.
        backend: `strategy.compile`.
        tensor_size: Ranks that share matrix products.

    Raises:
        ConfigError: The strategy compiles layers or splits them.
    """
    if config.relative_bias == "none":
        return
    if tensor_size > 1 or backend not in ("none", "auto"):
        raise ConfigError(
            f"model.relative_bias is {config.relative_bias!r}, but `strategy.compile` is {backend} and tensor-parallel "
            f"groups have {tensor_size} ranks. Attention with a relative bias depends on the lengths of the sequences "
            "and needs all heads. Set `strategy.compile` to none and strategy.tensor_parallel_size to 1."
        )


def check_regularization(regularization: Regularization | EmbeddingDistillation, task: Task, model: TaskModel) -> None:
    """Checks that the regularization works with the task and the model.

    Raises:
        ConfigError: The regularization makes extra passes over one micro-batch, but the loss of the task needs all
            sequences of a step; or the regularization has no effect on the task and model.
    """
    if isinstance(task, StepLevelTask) and not isinstance(regularization, OnePass | EmbeddingDistillation):
        raise ConfigError(
            f"the loss of {type(task).__name__} needs all sequences of a step at once, but regularization="
            f"{type(regularization).__name__} makes its passes over one micro-batch. Choose regularization=none."
        )
    if task.weight_step_size is not None and not isinstance(regularization, OnePass):
        raise ConfigError(
            f"the weights of the loss terms of {type(task).__name__} follow their losses, but regularization="
            f"{type(regularization).__name__} adds terms of its own. Choose regularization=none, or constant weights "
            "(task.group_loss=null)."
        )
    regularization.check(task, model)


def check_task_is_split(task: Task, size: int) -> None:
    """Checks that the head of the task can be split over tensor-parallel ranks.

    Raises:
        ConfigError: There are several such ranks, and the head cannot be split.
    """
    if size > 1 and not task.allows_tensor_parallel:
        raise ConfigError(
            f"The head of {type(task).__name__} cannot be split over {size} ranks. Tensor parallel splits no decoder "
            "and no generator. Choose strategy=ddp, fsdp2 or hsdp instead of tp or fsdp2_tp."
        )


def check_enough_sequences(sources: Mapping[str, SequenceSource], num_ranks: int) -> None:
    """Checks that each data-parallel rank gets a training sequence.

    Raises:
        ConfigError: There are fewer training sequences than ranks.
    """
    count = len(sources["train"])
    if count < num_ranks:
        raise ConfigError(
            f"there are {count} training sequences for {num_ranks} ranks. Each rank needs at least one. Start at "
            f"most {count} processes, or use more data."
        )


def check_profile(trainer: TrainerConfig, max_steps: int) -> None:
    """Checks that the run reaches the steps that are profiled.

    Raises:
        ConfigError: The last step of the run is before the first of them.
    """
    if trainer.profile is not None and trainer.profile[0] > max_steps:
        raise ConfigError(
            f"`trainer.profile` is {list(trainer.profile)}, but the run has {max_steps:,} steps. The first step to "
            "record must be one of them. Choose earlier steps."
        )


def check_evaluated_splits(trainer: TrainerConfig, sources: Mapping[str, SequenceSource]) -> None:
    """Checks that early stopping has a validation split, and that there is a test split if it is evaluated.

    Raises:
        ConfigError: A split is missing.
    """
    if trainer.evaluate_test and "test" not in sources:
        raise ConfigError(
            f"`trainer.evaluate_test` is true, but the data has only {', '.join(sources)}. It needs a test split. Set "
            "data.test or data.test_fraction, or trainer.evaluate_test=false."
        )
    if trainer.early_stopping_patience is not None and "validation" not in sources:
        raise ConfigError(
            f"`trainer.early_stopping_patience` is {trainer.early_stopping_patience}, but the data has only "
            f"{', '.join(sources)}. Early stopping requires a validation split. Add one, or set "
            "`trainer.early_stopping_patience` to null."
        )
