"""Opens what was trained: a run, a checkpoint or an export, with the task and the tokenizer that belong to it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from framework.config.build import build_model, data_kind
from framework.config.command_schema import TrainedConfig
from framework.config.nodes import Component, check_component
from framework.config.records import Record
from framework.config.run_folder import joined_by, read_config, read_task_record
from framework.config.run_records import read_starts
from framework.config.weights import find_run, find_weights, starting_values
from framework.data.examples.splits import SplitFiles
from framework.data.tokenization.tokenizer import TOKENIZER_KEY, Tokenizer
from framework.distributed.device import device_type
from framework.distributed.mesh import build_mesh, mesh_shape
from framework.distributed.parallel.parallelize import materialize
from framework.distributed.parallel.precision import resolve_precision
from framework.distributed.processes.agreement import check_agreement
from framework.distributed.processes.environment import ProcessInfo, process_info
from framework.distributed.processes.process_group import process_group
from framework.errors import CheckpointError, ConfigError, FrameworkError, reading_record
from framework.modules.inference import Inference
from framework.published.files import EXPORT_RECORD_FILE
from framework.published.pretrained import PretrainedWeights
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.task import Task, TaskModel
from framework.tracking.run_files import CONFIG_FILE, TASK_FILE

DATA_KEY = "data"
"""Key of an export's record for the format of its data files."""

_TIMEOUT_SECONDS = 600.0
"""How long a process waits for the others, which may be slower by a micro-batch or two."""


@dataclass(frozen=True)
class Trained:
    """A trained model before it has a device.

    Attributes:
        weights: All of them, on the CPU.
        tokenizer: The one it was trained with.
        task: With what it found in its data.
        record: What an export keeps of the task: `config`, and what `Task.side_config` gives.
        folder: The run folder; None for an export.
        data_record: Data that it was trained on; None for an export.
        data_layout: Format of its data files: `data_record`, or the part of it that an export keeps; None: unknown.
        step_size: Items of an optimizer step; None for an export, or where it is given in tokens.
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
        """Returns the data that it was trained on, checked; None for an export.

        Raises:
            FrameworkError: See `Record.component`.
        """
        return None if self.data_record is None else self.data_record.component(data_kind(type(self.task)))

    @property
    def file_layout(self) -> SplitFiles | None:
        """Returns the reader of its data files, for other files like them; None if there is none, or it is untrusted.

        Prediction does not need it, so a damaged record is no error here.
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
    """Reads a run (id or folder), a checkpoint of one, or an export of Cloze.

    Args:
        settings: Which one, and which of its weights.
        changes: Values of `Task.changeable_keys` that training did not have.

    Raises:
        ConfigError: A key is not among those that may be changed, or its value is none that the task takes.
        CheckpointError: Nothing is there, it cannot be read, or it does not say which task it was trained for.
    """
    trained = open_model(settings, changes)
    check_names_task(trained)
    return trained


def check_names_task(trained: Trained) -> None:
    """Checks that a model says which task it was trained for.

    Raises:
        CheckpointError: It does not, as the published models of others.
    """
    if "config" not in trained.record:
        raise CheckpointError(
            f"{trained.weights.source} does not say which task it was trained for. Prediction needs the task. Give a "
            "run, or a folder that framework.export wrote."
        )


def open_model(settings: TrainedConfig, changes: Mapping[str, Any] | None = None) -> Trained:
    """Reads what `open_trained` reads, or a published model of others, whose task is to embed texts.

    Args:
        settings: As of `open_trained`.
        changes: As of `open_trained`.

    Raises:
        FrameworkError: As of `open_trained`, except that the task of published models is not known.
    """
    source, runs = settings.run, Path(settings.runs)
    run = find_run(source, runs)
    weights = find_weights(source, runs, settings.weights, settings.average_last)
    file = run[0] / TASK_FILE if run is not None else Path(source) / EXPORT_RECORD_FILE
    record = read_task_record(run[0]) if run is not None else weights.task_record
    if weights.tokenizer_dir is None:
        raise CheckpointError(f"{source} holds no tokenizer; give a run, or a folder that framework.export wrote.")
    if run is None and "config" not in record:
        return _open_published(weights, weights.tokenizer_dir)
    if "config" not in record:
        raise CheckpointError(f"{file} does not name the task of the run. Predictions need it. Restore the file.")
    task = build_task(Record(file, "task", record["config"], settings.trust), changes or {})
    with reading_record(file, "Restore the file"):
        task.restore(record)
        task.restore_files(run[0] if run is not None else weights.tokenizer_dir)
        separators = joined_by(record)
        if separators not in (1, 2):
            raise ValueError(f"{separators} separators between the texts of a pair")
    tokenizer = Tokenizer.from_folder(weights.tokenizer_dir, separators)
    check_tokenizer(tokenizer, weights, _recorded_fingerprint(run[0] if run is not None else None, record))
    if run is None:
        layout = Record(file, "data", record[DATA_KEY], settings.trust) if record.get(DATA_KEY) else None
        return Trained(weights, tokenizer, task, record, None, None, layout, None)
    config, config_file = read_config(run[0]), run[0] / CONFIG_FILE
    with reading_record(config_file, "Restore the file"):
        data, step_size = config["data"], config["trainer"]["global_batch_size"]
        if not isinstance(step_size, int | None) or (step_size is not None and step_size < 1):
            raise ValueError(f"trainer.global_batch_size={step_size!r} is not a number of sequences")
    data_record = Record(config_file, "data", data, settings.trust)
    return Trained(weights, tokenizer, task, record, run[0], data_record, data_record, step_size)


def _open_published(weights: PretrainedWeights, tokenizer_dir: Path) -> Trained:
    """Returns a published encoder without its heads, with the task of embedding texts."""
    task = EmbeddingTask(
        max_length=weights.config.max_sequence_length,
        pooling=weights.task_record.get("pooling", "mean"),
        normalize=False,
    )
    tokenizer = Tokenizer.from_folder(tokenizer_dir)
    check_tokenizer(tokenizer, weights, None)
    return Trained(weights, tokenizer, task, weights.task_record, None, None, None, None)


def _recorded_fingerprint(run_folder: Path | None, record: Mapping[str, Any]) -> str | None:
    """Returns the recorded fingerprint of the tokenizer of a run or an export; None if it is unknown."""
    if run_folder is None:
        return record.get(TOKENIZER_KEY)
    starts = read_starts(run_folder)
    return starts[0]["fingerprints"].get("tokenizer") if starts else None


def check_tokenizer(tokenizer: Tokenizer, weights: PretrainedWeights, recorded: str | None) -> None:
    """Checks that a tokenizer is the one with which weights were trained.

    Args:
        tokenizer: Tokenizer stored with the weights.
        weights: Trained weights.
        recorded: Fingerprint recorded by the training; None: unknown.

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
            f"{weights.config.vocab_size} embeddings. Each token needs one. Restore the tokenizer's files."
        )


def build_task(record: Record, changes: Mapping[str, Any]) -> Task:
    """The task of a record, with values that training did not have; a group of keys keeps what is not named.

    Raises:
        ConfigError: A key is not among `Task.changeable_keys`, or the task rejects its value; or the record names
            untrusted code.
        CheckpointError: The record is damaged.
    """
    recorded = record.component(Task)
    changeable = recorded.target.changeable_keys  # type: ignore[attr-defined]
    for key in changes:
        if key not in changeable:
            allowed = (
                f"what may be changed is {', '.join(changeable)}" if changeable else "nothing of it may be changed"
            )
            raise ConfigError(f"`task.{key}` belongs to how the model was trained; {allowed}.")
    config = record.node
    merged = {key: {**config.get(key, {}), **new} if isinstance(new, Mapping) else new for key, new in changes.items()}
    changed = check_component("task", {**config, **merged})
    with reading_record(record.file, "Restore the file"):
        return changed.build()


def build_trained_model(trained: Trained, device: torch.device) -> TaskModel:
    """The model with its weights on a device.

    Raises:
        CheckpointError: Weights of the head are missing, or of another shape.
    """
    model = build_model(trained.task, trained.weights.config)
    fresh = {name for name, _ in model.named_parameters() if name.startswith("head.")}
    fresh -= {f"head.{name}" for name in trained.weights.heads}
    if fresh:
        raise CheckpointError(
            f"{trained.weights.source} lacks weights of its head, for example {min(fresh)}; export or train it again."
        )
    materialize(model, starting_values(trained.weights, trained.weights.config, seed=0)(model), device)
    return model


@contextmanager
def open_inference(trained: Trained, micro_batch_tokens: int, precision_name: str) -> Iterator[Inference]:
    """The model on this process's device, with a process group where there are several. All ranks must enter.

    Args:
        trained: Of `open_trained`; read before, so that a file that is missing costs nothing.
        micro_batch_tokens: Token budget of a forward pass.
        precision_name: Of the forward pass.

    Raises:
        CheckpointError: Weights of the head are missing, or of another shape.
    """
    info = process_info()
    kind = device_type()
    strategy = "single" if info.world_size == 1 else "ddp"
    with process_group(strategy, kind, _TIMEOUT_SECONDS):
        # Ranks may have read different checkpoints if the run is still training.
        check_agreement({"the checkpoint": trained.weights.source})
        mesh = build_mesh(strategy, mesh_shape(strategy, info.world_size), kind)
        yield build_inference(trained, micro_batch_tokens, precision_name, info, mesh)


def build_inference(
    trained: Trained,
    micro_batch_tokens: int,
    precision_name: str,
    info: ProcessInfo = ProcessInfo(),  # noqa: B008  immutable
    mesh: DeviceMesh | None = None,
) -> Inference:
    """Puts the model on the device of this process.

    Args:
        trained: Result of `open_trained` or `open_model`.
        micro_batch_tokens: Token budget of a forward pass.
        precision_name: Precision of the forward pass.
        info: This process.
        mesh: Mesh over all processes; None for a single process.

    Raises:
        CheckpointError: Weights of the head are missing, or of another shape.
    """
    kind = device_type()
    device = torch.device(kind, info.local_rank) if kind == "cuda" else torch.device(kind)
    precision = resolve_precision(precision_name, kind)
    model = build_trained_model(trained, device)
    return Inference(model, trained.task, micro_batch_tokens, precision, device, info.rank, mesh)
