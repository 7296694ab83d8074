"""Builds the regularization of a run. Opens the teacher of a distillation and checks that it fits the student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.config.checks import check_regularization
from framework.config.records import Record
from framework.config.schema import TrainConfig
from framework.data.planning.plan import GroupedSequences, SequenceSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.materialization import materialize
from framework.errors import CheckpointError, ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.modules.passes.distillation import Distillation
from framework.modules.passes.embedding_distillation import EmbeddingDistillation
from framework.modules.passes.regularization import Regularization
from framework.modules.passes.teacher import Teacher, weights_fingerprint
from framework.published.files import EXPORT_RECORD_FILE
from framework.published.pretrained import PretrainedWeights
from framework.published.starting_head import fit_head
from framework.runs.task_parts import build_model
from framework.runs.trained import build_task
from framework.runs.weights import find_run, find_weights, starting_values
from framework.tasks.embedding.features import TEACHER_VECTORS
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.explanation import one_item
from framework.tasks.task import Task, TaskModel
from framework.tracking.run_files import TASK_FILE

AnyRegularization = Regularization | EmbeddingDistillation


def build_regularization(
    settings: TrainConfig,
    tensor_size: int,
    task: Task,
    tokenizer: Tokenizer,
    sources: Mapping[str, SequenceSource],
    model: TaskModel,
    earlier: AnyRegularization | None = None,
) -> AnyRegularization:
    """Builds and checks a regularization. A distillation opens its teacher and adds projections to the model.

    Args:
        settings: Settings of the run.
        tensor_size: Ranks that share matrix products.
        task: Task of the student; it knows its labels.
        tokenizer: Tokenizer of the student.
        sources: Sequences, by split.
        model: Student on the meta device.
        earlier: Regularization of the phase before, whose teacher is kept in memory once.

    Raises:
        FrameworkError: The regularization does not work with the task, the teacher cannot be read or does not fit the
            student, or the strategy does not support it.
    """
    regularization: AnyRegularization = settings.regularization.build()
    check_regularization(regularization, task, model)
    if not isinstance(regularization, Distillation | EmbeddingDistillation):
        return regularization
    _check_strategy(regularization, settings, tensor_size)
    if regularization.teacher is None:
        assert isinstance(regularization, EmbeddingDistillation)
        regularization.follow(None, _width_of_vectors(sources["train"]), model)
        return regularization
    _check_other_run(regularization.teacher, settings)
    teacher = _earlier_teacher(regularization, earlier)
    if teacher is None:
        weights = find_weights(regularization.teacher, Path(settings.run.dir))
        _check_tokenizer(weights, tokenizer)
        _check_pictures(weights, task)
        teacher = _open(weights, _task_of_head(regularization, weights, task, settings))
    _check_positions(teacher, sources)
    if isinstance(regularization, Distillation):
        regularization.follow(teacher, model)
    else:
        regularization.follow(teacher, teacher.config.hidden_size, model)
    return regularization


def _earlier_teacher(
    regularization: Distillation | EmbeddingDistillation, earlier: AnyRegularization | None
) -> Teacher | None:
    """Returns the teacher of the phase before if it is the same."""
    if isinstance(earlier, EmbeddingDistillation) and isinstance(regularization, EmbeddingDistillation):
        return earlier.followed if earlier.teacher == regularization.teacher else None
    if isinstance(earlier, Distillation) and isinstance(regularization, Distillation):
        is_same = (earlier.teacher, earlier.match) == (regularization.teacher, regularization.match)
        return earlier.followed if is_same else None
    return None


def _width_of_vectors(source: SequenceSource) -> int:
    vectors = one_item(source, 0).targets.get(TEACHER_VECTORS)
    if vectors is None:
        raise ConfigError(
            "regularization.teacher is null, and data.vector_column too. Embeddings follow a teacher, or its "
            "vectors in the data. Set one of the two."
        )
    return vectors.shape[1]


def _task_of_head(
    regularization: Distillation | EmbeddingDistillation,
    weights: PretrainedWeights,
    task: Task,
    settings: TrainConfig,
) -> Task | None:
    """Returns the task of the teacher, which builds its head; None if the head is not used."""
    if isinstance(regularization, EmbeddingDistillation):
        assert isinstance(task, EmbeddingTask)
        return _embedding_task(weights, task, settings)
    if regularization.match != "logits":
        return None
    _check_head(weights, task)
    return _own_task(weights, task, settings)


def _embedding_task(weights: PretrainedWeights, task: EmbeddingTask, settings: TrainConfig) -> Task:
    """Returns the task of a teacher of embeddings. Published models pool as they say, else by the mean."""
    if "config" not in weights.task_record:
        pooling = weights.task_record.get("pooling", "mean")
        return EmbeddingTask(max_length=task.max_length, pooling=pooling, normalize=task.normalize)
    if weights.head_kind != task.head_kind:
        raise ConfigError(
            f"the teacher {weights.source} has {_named_head(weights.head_kind)}, and the student one for "
            f"{task.head_kind}. Both compute embeddings. Choose a teacher that was trained for embeddings, or a "
            "published encoder."
        )
    return _own_task(weights, task, settings)


def _check_strategy(
    regularization: Distillation | EmbeddingDistillation, settings: TrainConfig, tensor_size: int
) -> None:
    if tensor_size > 1:
        raise ConfigError(
            f"strategy={settings.strategy.name} splits each matrix product over {tensor_size} ranks. A distillation "
            "compares whole outputs. Use strategy=fsdp2 or ddp."
        )
    if (
        isinstance(regularization, Distillation)
        and regularization.reads_layers
        and settings.strategy.compile not in ("none", "auto")
    ):
        raise ConfigError(
            f"`strategy.compile` is {settings.strategy.compile}, and regularization.match is {regularization.match}. "
            "Compiled layers do not show what they compute. Set strategy.compile=none."
        )


def _check_other_run(teacher: str, settings: TrainConfig) -> None:
    """Checks that the teacher is another run than the one that starts."""
    if settings.run.id is None:
        return
    own, run = Path(settings.run.dir) / settings.run.id, find_run(teacher, Path(settings.run.dir))
    if teacher == settings.run.id or (run is not None and run[0].resolve() == own.resolve()):
        raise ConfigError(
            f"regularization.teacher is {teacher}, which is this run itself. A teacher has finished its training. "
            "Choose another run.id, or another teacher."
        )


def _check_tokenizer(weights: PretrainedWeights, tokenizer: Tokenizer) -> None:
    if weights.tokenizer_dir is None:
        raise ConfigError(
            f"the teacher {weights.source} contains no tokenizer. It reads the token ids of the student, so both "
            "tokenizers are compared. Add the files of its tokenizer to its folder."
        )
    own = Tokenizer.from_folder(weights.tokenizer_dir)
    if not own.same_ids(tokenizer):
        raise ConfigError(
            f"the teacher {weights.source} has the tokenizer {own.fingerprint}, and the student "
            f"{tokenizer.fingerprint} ({tokenizer.folder}). A teacher reads the token ids of the student. Train the "
            f"student with tokenizer.path={own.folder}, on a store that was prepared with it, or choose another "
            "teacher."
        )


def _check_pictures(weights: PretrainedWeights, task: Task) -> None:
    if task.patch_size and weights.config.patch_size != task.patch_size:
        raise ConfigError(
            f"task.patch_size is {task.patch_size}, and the teacher {weights.source} has {weights.config.patch_size}. "
            "Both read the same patches. Choose a teacher that was trained on pictures with this patch size."
        )


def _check_positions(teacher: Teacher, sources: Mapping[str, SequenceSource]) -> None:
    source, most = sources["train"], teacher.config.max_sequence_length
    longest = source.max_sequence_length if isinstance(source, GroupedSequences) else source.max_length
    if longest > most:
        raise ConfigError(
            f"sequences of train may have {longest} tokens, but the teacher {teacher.source} has positions for {most}. "
            "The teacher reads the sequences of the student. Shorten the sequences of the task, or choose a teacher "
            "with more positions."
        )


def _open(weights: PretrainedWeights, task: Task | None) -> Teacher:
    """Builds the teacher on the CPU, with the head of its task, or without a head if it is None."""
    if task is None:
        with torch.device("meta"):
            model = TaskModel(TransformerEncoder(weights.config), nn.Identity())
    else:
        weights = fit_head(weights, task.head_kind, task.to_record())
        model = build_model(task, weights.config)
        _check_complete(weights, model)
    materialize(model, starting_values(weights, weights.config, seed=0)(model), "cpu")
    model.requires_grad_(False)
    return Teacher(weights.source, weights_fingerprint(dict(model.named_parameters())), model)


def _check_head(weights: PretrainedWeights, task: Task) -> None:
    """Checks that the teacher has a head for the student's task, with the same labels.

    Raises:
        ConfigError: It has none, or other labels.
    """
    if weights.head_kind != task.head_kind:
        raise ConfigError(
            f"the teacher {weights.source} has {_named_head(weights.head_kind)}, and the student one for "
            f"{task.head_kind}. regularization.match=logits compares the outputs of both heads. Choose a teacher that "
            "was trained for this task, or regularization.match=hidden or relations."
        )
    _check_labels(weights, task)


def _check_complete(weights: PretrainedWeights, model: TaskModel) -> None:
    missing = sorted(
        name
        for name, _ in model.named_parameters()
        if name.startswith("head.") and name.removeprefix("head.") not in weights.heads
    )
    if missing:
        raise ConfigError(
            f"the teacher {weights.source} lacks {missing[0]}, which its outputs need. Choose a teacher with the "
            "complete head of this task, or regularization.match=hidden or relations."
        )


def _named_head(kind: str | None) -> str:
    return "no head" if kind is None else f"a head for {kind}"


def _check_labels(weights: PretrainedWeights, task: Task) -> None:
    own, others = (list(record.get("labels") or ()) for record in (task.to_record(), weights.task_record))
    is_unnamed = all(str(label).startswith("LABEL_") for label in others)
    if sorted(map(str, own)) == sorted(map(str, others)) or (is_unnamed and len(own) == len(others)):
        return
    raise ConfigError(
        f"the teacher {weights.source} has the labels {_shown(others)}, and the student {_shown(own)}. "
        "regularization.match=logits compares the scores of the same labels. Choose a teacher that was trained on "
        "these labels, or set data.labels."
    )


def _shown(labels: list[Any]) -> str:
    shown = ", ".join(map(str, labels[:8]))
    return f"{shown} and {len(labels) - 8} more" if len(labels) > 8 else shown or "(none)"


def _own_task(weights: PretrainedWeights, task: Task, settings: TrainConfig) -> Task:
    """Returns the task of the teacher, whose head may differ in pooling and projection; labels are the student's.

    A published model does not record a task, and its head is built by the student's.

    Raises:
        ConfigError: A published model pools in another way than the student.
    """
    record = weights.task_record
    if "config" not in record:
        pooling = getattr(task, "pooling", None)
        if record.get("pooling", pooling) != pooling:
            raise ConfigError(
                f"the teacher {weights.source} pools by {record['pooling']}, and the student by {pooling}. The head of "
                f"a published model is built like that of the student. Set task.pooling={record['pooling']}."
            )
        return task
    run = find_run(weights.source, Path(settings.run.dir))
    file = run[0] / TASK_FILE if run is not None else Path(weights.source) / EXPORT_RECORD_FILE
    try:
        own = build_task(Record(file, "task", record["config"], (type(task).__module__,)), {})
    except CheckpointError as error:
        raise CheckpointError(f"the task of the teacher {weights.source} cannot be read: {error}") from error
    # The scores of the teacher are reordered to the labels of the student.
    own.restore({**record, "labels": task.to_record()["labels"]} if record.get("labels") else record)
    return own


def describe_teacher(regularization: AnyRegularization | None, config: EncoderConfig) -> str:
    """Returns one line about a teacher: its source, its size, and what its student follows; "" if there is none.

    Args:
        regularization: Result of `build_regularization`.
        config: Encoder configuration of the student.
    """
    if not isinstance(regularization, Distillation | EmbeddingDistillation):
        return ""
    if regularization.followed is None:
        return "vectors of the data"
    other = regularization.followed.config
    parts = [
        f"{regularization.followed.source}, {other.num_layers} layers of {other.hidden_size:,} "
        f"(student: {config.num_layers} of {config.hidden_size:,})",
    ]
    if isinstance(regularization, EmbeddingDistillation):
        return parts[0]
    parts.append(f"match={regularization.match}")
    if regularization.reads_layers:
        pairs = ", ".join(f"{layer} to {taught}" for layer, taught in regularization.layers.items())
        parts.append(f"student layers to teacher layers: {pairs}")
    if regularization.match == "relations":
        parts.append(f"{regularization.relation_heads} relation heads")
    return "; ".join(parts)
