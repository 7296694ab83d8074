"""Opens what was trained: a run, a checkpoint or an export, with the task and the tokenizer that belong to it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from framework.config.build import build_model, data_kind
from framework.config.command_schema import TrainedConfig
from framework.config.nodes import Component, check_component
from framework.config.records import Record
from framework.config.run_folder import CONFIG_FILE, TASK_FILE, joined_by, read_config, read_task_record
from framework.config.weights import find_run, find_weights, starting_values
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.mesh import build_mesh, mesh_shape
from framework.distributed.parallel.parallelize import materialize
from framework.distributed.parallel.precision import resolve_precision
from framework.distributed.processes.agreement import check_agreement
from framework.distributed.processes.environment import process_info
from framework.distributed.processes.process_group import process_group
from framework.errors import CheckpointError, ConfigError, reading_record
from framework.models.pretrained import PretrainedWeights
from framework.models.published.files import SIDE_CONFIG_FILE
from framework.modules.inference import Inference
from framework.tasks.task import Task, TaskModel

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
        data_record: The data it was trained on; None for an export.
        step_size: Items of an optimizer step; None for an export, or where it is given in tokens.
    """

    weights: PretrainedWeights
    tokenizer: Tokenizer
    task: Task
    record: Mapping[str, Any]
    folder: Path | None
    data_record: Record | None
    step_size: int | None

    @property
    def data(self) -> Component | None:
        """The data it was trained on, checked; None for an export.

        Raises:
            FrameworkError: See `Record.component`.
        """
        return None if self.data_record is None else self.data_record.component(data_kind(type(self.task)))


def open_trained(settings: TrainedConfig, changes: Mapping[str, Any] | None = None) -> Trained:
    """Reads a run (id or folder), a checkpoint of one, or an export of Cloze.

    Args:
        settings: Which one, and which of its weights.
        changes: Values of `Task.changeable_keys` that training did not have.

    Raises:
        ConfigError: A key is not among those that may be changed, or its value is none that the task takes.
        CheckpointError: Nothing is there, it cannot be read, or it does not say which task it was trained for.
    """
    source, runs = settings.run, Path(settings.runs)
    run = find_run(source, runs)
    weights = find_weights(source, runs, settings.weights, settings.average_last)
    file = run[0] / TASK_FILE if run is not None else Path(source) / SIDE_CONFIG_FILE
    record = read_task_record(run[0]) if run is not None else weights.side
    if "config" not in record:
        raise CheckpointError(
            f"{source} does not say which task it was trained for; give a run, or a folder that framework.export wrote."
        )
    if weights.tokenizer_dir is None:
        raise CheckpointError(f"{source} holds no tokenizer; give a run, or a folder that framework.export wrote.")
    task = build_task(Record(file, "task", record["config"], settings.trust), changes or {})
    with reading_record(file, "Restore the file"):
        task.restore(record)
        task.restore_files(run[0] if run is not None else weights.tokenizer_dir)
        separators = joined_by(record)
        if separators not in (1, 2):
            raise ValueError(f"{separators} separators between the texts of a pair")
    tokenizer = Tokenizer.from_folder(weights.tokenizer_dir, separators)
    if run is None:
        return Trained(weights, tokenizer, task, record, None, None, None)
    config, config_file = read_config(run[0]), run[0] / CONFIG_FILE
    with reading_record(config_file, "Restore the file"):
        data, step_size = config["data"], config["trainer"]["global_batch_size"]
        if not isinstance(step_size, int | None) or (step_size is not None and step_size < 1):
            raise ValueError(f"trainer.global_batch_size={step_size!r} is no number of sequences")
    return Trained(
        weights, tokenizer, task, record, run[0], Record(config_file, "data", data, settings.trust), step_size
    )


def build_task(record: Record, changes: Mapping[str, Any]) -> Task:
    """The task of a record, with values that training did not have; a group of keys keeps what is not named.

    Raises:
        ConfigError: A key is not among `Task.changeable_keys`, or a value is none that the task takes; or the record
            names code that is not trusted.
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
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device_type, info.local_rank) if device_type == "cuda" else torch.device(device_type)
    precision = resolve_precision(precision_name, device_type)
    strategy = "single" if info.world_size == 1 else "ddp"
    with process_group(strategy, device_type, _TIMEOUT_SECONDS):
        # Of a run that still trains, ranks may have read different checkpoints.
        check_agreement({"the checkpoint": trained.weights.source})
        mesh = build_mesh(strategy, mesh_shape(strategy, info.world_size), device_type)
        model = build_trained_model(trained, device)
        yield Inference(model, trained.task, micro_batch_tokens, precision, device, info.rank, mesh)
