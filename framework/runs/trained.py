"""Opens trained models: a run, a checkpoint or an export, with its task and tokenizer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from framework.config.command_schema import TrainedConfig
from framework.config.nodes import Component, check_component
from framework.config.records import Record
from framework.data.examples.splits import SplitFiles
from framework.data.tokenization.tokenizer import TOKENIZER_KEY, Tokenizer
from framework.distributed.device import device_type
from framework.distributed.mesh import build_mesh, mesh_shape
from framework.distributed.parallel.materialization import materialize
from framework.distributed.parallel.precision import resolve_precision
from framework.distributed.processes.agreement import check_agreement
from framework.distributed.processes.environment import ProcessInfo, process_info
from framework.distributed.processes.process_group import process_group
from framework.errors import CheckpointError, ConfigError, FrameworkError, reading_record
from framework.modules.inference import Inference
from framework.published.files import EXPORT_RECORD_FILE
from framework.published.pretrained import PretrainedWeights
from framework.published.text_vectors import read_text_vectors
from framework.runs.folder import read_config, read_task_record, recorded_pair_separators
from framework.runs.record_files import read_starts
from framework.runs.task_parts import build_model, data_kind
from framework.runs.weights import find_run, find_weights, starting_values
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.task import Task, TaskModel
from framework.tracking.run_files import CONFIG_FILE, TASK_FILE

DATA_KEY = "data"
"""Key in the record of an export; its value is the format of the data files."""

_TIMEOUT_SECONDS = 600.0
"""Time that a process waits for other processes, which may be slower by one or two micro-batches."""


@dataclass(frozen=True)
class Trained:
    """Trained model before it is moved to a device.

    Attributes:
        weights: All weights, on the CPU.
        tokenizer: Tokenizer of the training.
        task: Task, with the values that it derived from its training data, such as labels.
        record: Record of the task, which an export contains too: `config` and the values of `Task.to_record`.
        folder: Run folder; None for an export.
        data_record: Record of the training data; None for an export.
        data_layout: Format of the data files: `data_record`, or the part of it that an export keeps; None: unknown.
        step_size: Items per optimizer step; None for an export, or if the run gives tokens per step.
    """

    weights: PretrainedWeights
    tokenizer: Tokenizer
    task: Task
    record: Mapping[str, Any]
    folder: Path | None
    data_record: Record | None
    data_layout: Record | None
    step_size: int | None

    @property
    def data(self) -> Component | None:
        """Returns the validated component of the training data; None for an export.

        Raises:
            FrameworkError: The record cannot be used, see `Record.component`.
        """
        return None if self.data_record is None else self.data_record.component(data_kind(type(self.task)))

    @property
    def file_layout(self) -> SplitFiles | None:
        """Returns the reader of the training files, for new files of the same format.

        Returns None if the model records no reader, or if the record is damaged or names untrusted code. This is not
        an error, because prediction works without the reader.
        """
        if self.data_layout is None:
            return None
        try:
            component = self.data_layout.component(object)
            is_split = isinstance(component.target, type) and issubclass(component.target, SplitFiles)
            return component.build() if is_split else None
        except FrameworkError:
            return None


def open_trained(settings: TrainedConfig, changes: Mapping[str, Any] | None = None) -> Trained:
    """Reads a run (id or folder), a checkpoint of a run, or an export of Cloze.

    Args:
        settings: Settings that select the model and its weights.
        changes: Values of `Task.changeable_keys` that differ from training.

    Raises:
        ConfigError: A key may not be changed, or the task rejects its value.
        CheckpointError: The model does not exist, cannot be read, or does not record the task that it was trained for.
    """
    trained = open_model(settings, changes)
    check_names_task(trained)
    return trained


def check_names_task(trained: Trained) -> None:
    """Checks that a model records the task that it was trained for.

    Raises:
        CheckpointError: The model does not record its task. Published models that Cloze did not train do not.
    """
    if "config" not in trained.record:
        raise CheckpointError(
            f"{trained.weights.source} does not record the task that it was trained for. Prediction needs the task. "
            "Give a run, or a folder that framework.export wrote. For vectors of texts, use framework.predict with "
            "output=FILE.npy."
        )


def open_model(settings: TrainedConfig, changes: Mapping[str, Any] | None = None) -> Trained:
    """Reads a model like `open_trained`, and also published models that Cloze did not train.

    A published model gets the task of embedding texts.

    Args:
        settings: See `open_trained`.
        changes: See `open_trained`.

    Raises:
        FrameworkError: The model cannot be used, as in `open_trained`. A published model needs no recorded task.
    """
    source, runs = settings.run, Path(settings.runs)
    run = find_run(source, runs)
    weights = find_weights(source, runs, settings.weights, settings.average_last)
    return with_task(weights, None if run is None else run[0], settings, changes)


def with_task(
    weights: PretrainedWeights, run: Path | None, settings: TrainedConfig, changes: Mapping[str, Any] | None = None
) -> Trained:
    """Adds the recorded task, the tokenizer and the data to weights, as `open_model` does.

    Args:
        weights: Weights of the run or of another model.
        run: Run folder; None: the model is not a run.
        settings: See `open_trained`.
        changes: See `open_trained`.

    Raises:
        FrameworkError: See `open_model`.
    """
    source = settings.run
    file = run / TASK_FILE if run is not None else Path(source) / EXPORT_RECORD_FILE
    record = read_task_record(run) if run is not None else weights.task_record
    if weights.tokenizer_dir is None:
        raise CheckpointError(
            f"{source} contains no tokenizer. A model can only be used with its tokenizer. Give a run, or a folder "
            "that framework.export wrote."
        )
    if run is None and "config" not in record:
        return _open_published(weights, weights.tokenizer_dir, changes or {})
    if "config" not in record:
        raise CheckpointError(f"{file} does not name the task of the run. Prediction needs the task. Restore the file.")
    task = build_task(Record(file, "task", record["config"], settings.trust), changes or {})
    with reading_record(file, "Restore the file"):
        task.restore(record)
        task.restore_files(run if run is not None else weights.tokenizer_dir)
        separators = recorded_pair_separators(record)
        if separators not in (1, 2):
            raise ValueError(f"{separators} separators between the texts of a pair")
    tokenizer = Tokenizer.from_folder(weights.tokenizer_dir, separators)
    check_tokenizer(tokenizer, weights, _recorded_fingerprint(run if run is not None else None, record))
    if run is None:
        layout = Record(file, "data", record[DATA_KEY], settings.trust) if record.get(DATA_KEY) else None
        return Trained(weights, tokenizer, task, record, None, None, layout, None)
    config, config_file = read_config(run), run / CONFIG_FILE
    with reading_record(config_file, "Restore the file"):
        data, step_size = config["data"], config["trainer"]["global_batch_size"]
        if not isinstance(step_size, int | None) or (step_size is not None and step_size < 1):
            raise ValueError(f"trainer.global_batch_size={step_size!r} is not a number of sequences")
    data_record = Record(config_file, "data", data, settings.trust)
    return Trained(weights, tokenizer, task, record, run, data_record, data_record, step_size)


def _open_published(weights: PretrainedWeights, folder: Path, changes: Mapping[str, Any]) -> Trained:
    """Returns a published encoder without its heads, with the task of embedding texts.

    Vectors are those of sentence-transformers if the folder has its files, else the mean of the tokens.
    """
    check_changes(EmbeddingTask, changes)
    recorded = {"pooling": "mean", "normalize": False, **weights.task_record, **read_text_vectors(folder)}
    longest = weights.config.max_sequence_length
    task = EmbeddingTask(
        max_length=min(recorded.get("max_length", longest), longest),
        prompts=recorded.get("prompts"),
        **{"pooling": recorded["pooling"], "normalize": recorded["normalize"], **changes},
    )
    tokenizer = Tokenizer.from_folder(folder)
    check_tokenizer(tokenizer, weights, None)
    return Trained(weights, tokenizer, task, {**weights.task_record, **task.to_record()}, None, None, None, None)


def _recorded_fingerprint(run_folder: Path | None, record: Mapping[str, Any]) -> str | None:
    """Returns the recorded fingerprint of the tokenizer of a run or an export; None if it is unknown."""
    if run_folder is None:
        return record.get(TOKENIZER_KEY)
    starts = read_starts(run_folder)
    return starts[0]["fingerprints"].get("tokenizer") if starts else None


def check_tokenizer(tokenizer: Tokenizer, weights: PretrainedWeights, recorded: str | None) -> None:
    """Checks that weights were trained with a tokenizer.

    Args:
        tokenizer: Tokenizer stored with the weights.
        weights: Trained weights.
        recorded: Fingerprint of the tokenizer in training; None: unknown.

    Raises:
        CheckpointError: The fingerprints differ, or the tokenizer has more tokens than the embeddings have rows.
    """
    if recorded is not None and not tokenizer.is_recorded_as(recorded):
        raise CheckpointError(
            f"the tokenizer in {tokenizer.folder} has fingerprint {tokenizer.fingerprint}, but {weights.source} was "
            f"trained with {recorded}. Both must be the same. Restore the files of the tokenizer."
        )
    if tokenizer.vocab_size > weights.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer in {tokenizer.folder} has {tokenizer.vocab_size} tokens, but {weights.source} has "
            f"{weights.config.vocab_size} embeddings. Each token needs an embedding. Restore the files of the "
            "tokenizer."
        )


def build_task(record: Record, changes: Mapping[str, Any]) -> Task:
    """Builds the task of a record with changed values. Keys of a group that are not changed keep their values.

    Args:
        record: Record of the task.
        changes: Values of `Task.changeable_keys` that differ from training.

    Raises:
        ConfigError: A key is not among `Task.changeable_keys`, or the task rejects its value; or the record names
            untrusted code.
        CheckpointError: The record is damaged.
    """
    check_changes(record.component(Task).target, changes)
    config = record.node
    merged = {key: {**config.get(key, {}), **new} if isinstance(new, Mapping) else new for key, new in changes.items()}
    changed = check_component("task", {**config, **merged})
    with reading_record(record.file, "Restore the file"):
        return changed.build()


def check_changes(task: Any, changes: Mapping[str, Any]) -> None:
    """Checks that only keys differ from training that may.

    Args:
        task: Class of the task.
        changes: Values that differ.

    Raises:
        ConfigError: A key is not among `Task.changeable_keys`.
    """
    changeable = task.changeable_keys
    for key in changes:
        if key not in changeable:
            allowed = f"Only {', '.join(changeable)} may change" if changeable else "No key of this task may change"
            raise ConfigError(f"`task.{key}` is fixed by the training. {allowed}. Remove `task.{key}`.")


def describe_trained(trained: Trained) -> list[tuple[str, str]]:
    """Describes the model that a command would use as rows of (name, text)."""
    config = trained.weights.config
    return [
        ("weights", trained.weights.source),
        ("task", type(trained.task).__name__),
        ("encoder", f"{config.family}, {config.num_layers} layers of {config.hidden_size}"),
    ]


def build_trained_model(trained: Trained, device: torch.device) -> TaskModel:
    """Builds the model with its weights on a device.

    Raises:
        CheckpointError: Weights of the head are missing or have another shape.
    """
    model = build_model(trained.task, trained.weights.config)
    check_head_is_complete(model, trained.weights)
    materialize(model, starting_values(trained.weights, trained.weights.config, seed=0)(model), device)
    return model


def check_head_is_complete(model: TaskModel, weights: PretrainedWeights) -> None:
    """Checks that weights hold every parameter of a head.

    Raises:
        CheckpointError: A parameter is missing.
    """
    fresh = {name for name, _ in model.named_parameters() if name.startswith("head.")}
    fresh -= {f"head.{name}" for name in weights.heads}
    if fresh:
        raise CheckpointError(
            f"{weights.source} lacks weights of its head, for example {min(fresh)}. All weights are required. "
            "Export or train the model again."
        )


@contextmanager
def open_inference(trained: Trained, micro_batch_tokens: int, precision_name: str) -> Iterator[Inference]:
    """Moves the model to the device of this process, in a process group if there are several processes.

    Collective: all ranks must enter.

    Args:
        trained: Result of `open_trained`, read before the process group is created, so that errors in files come early.
        micro_batch_tokens: Token budget of a forward pass.
        precision_name: Precision of the forward pass.

    Raises:
        CheckpointError: Weights of the head are missing or have another shape.
    """
    with inference_mesh(trained.weights.source) as mesh:
        yield build_inference(trained, micro_batch_tokens, precision_name, process_info(), mesh)


@contextmanager
def inference_mesh(checkpoint: str) -> Iterator[DeviceMesh | None]:
    """Creates the mesh of all processes, in a process group if there are several. Collective: all ranks must enter.

    Args:
        checkpoint: Source of the weights. Ranks may have read different checkpoints if a run is still training.

    Raises:
        DistributedError: Ranks read different checkpoints.
    """
    world_size, kind = process_info().world_size, device_type()
    strategy = "single" if world_size == 1 else "ddp"
    with process_group(strategy, kind, _TIMEOUT_SECONDS):
        check_agreement({"the checkpoint": checkpoint})
        yield build_mesh(strategy, mesh_shape(strategy, world_size), kind)


def build_inference(
    trained: Trained,
    micro_batch_tokens: int,
    precision_name: str,
    info: ProcessInfo = ProcessInfo(),  # noqa: B008  immutable
    mesh: DeviceMesh | None = None,
) -> Inference:
    """Moves the model to the device of this process.

    Args:
        trained: Result of `open_trained` or `open_model`.
        micro_batch_tokens: Token budget of a forward pass.
        precision_name: Precision of the forward pass.
        info: This process.
        mesh: Mesh over all processes; None for a single process.

    Raises:
        CheckpointError: Weights of the head are missing or have another shape.
    """
    kind = device_type()
    device = torch.device(kind, info.local_rank) if kind == "cuda" else torch.device(kind)
    precision = resolve_precision(precision_name, kind)
    model = build_trained_model(trained, device)
    return Inference(model, trained.task, micro_batch_tokens, precision, device, info.rank, mesh)
