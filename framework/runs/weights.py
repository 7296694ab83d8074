"""Reads starting weights from a run, a checkpoint, an export or published weights into one format on the CPU.

A run resumes from its newest complete checkpoint (run_folder.py) if there is one. Else it starts from `init_from`
(this module). Without `init_from` it starts from fresh values (framework.nn.initialization).
"""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from framework.checkpoint.layout import CHECKPOINTS, Weights, step_of
from framework.checkpoint.storage import Location, location
from framework.config.nodes import check_value
from framework.config.phases import model_at
from framework.distributed.processes.environment import process_info
from framework.errors import CheckpointError, ConfigError, reading_record
from framework.exports.adapters import TrainedAdapter
from framework.models.config import EncoderConfig
from framework.nn.initialization import initial_values
from framework.nn.lora import LoraSettings, is_update, merge_lora
from framework.published.pretrained import PretrainedWeights, load_pretrained, match_parameters, weights_from_state
from framework.runs.folder import (
    TOKENIZER_FOLDER,
    find_checkpoint,
    read_config,
    read_task_record,
    saved_checkpoints_folder,
)
from framework.tasks.rewriting import RewritingHead
from framework.tasks.task import TaskModel
from framework.tracking.run_files import CONFIG_FILE
from framework.tracking.run_status import named_run

if TYPE_CHECKING:
    from framework.checkpoint.load import Loaded


def find_run(source: str, runs: Path) -> tuple[Path, Location] | None:
    """Finds the run that a name means.

    Args:
        source: Run id in `runs` or one of its sub-folders, such as a sweep; the path of a run folder; or the path or
            URL of a checkpoint.
        runs: Folder that contains the run folders.

    Returns:
        The run folder, and the path to pass to `find_checkpoint`; None if the name does not mean a run.

    Raises:
        CheckpointError: Several runs have the id.
    """
    named = named_run(source, runs)
    if named is not None and (named / CONFIG_FILE).is_file():
        return named, named
    checkpoint = location(source)
    checkpoints = checkpoint.parent
    # Checkpoints outside of the run folder are in a folder that is named after the run id.
    folder = Path(source).parent.parent if checkpoints.name == CHECKPOINTS else runs / checkpoints.name
    if (folder / CONFIG_FILE).is_file() and saved_checkpoints_folder(folder).resolve() == checkpoints.resolve():
        return folder, checkpoint
    return None


def find_weights(source: str, runs: Path, weights: Weights = "auto", average_last: int = 1) -> PretrainedWeights:
    """Reads weights from a run (id or folder), a checkpoint, an export, a Hugging Face folder or hub name.

    Low-rank updates of a run are added to its weights.

    Args:
        source: Run id below `runs`, path, or name on the Hugging Face hub.
        runs: Folder that contains the run folders.
        weights: Selection among the weights of a run (`framework.checkpoint.load.read_full_state`).
        average_last: Number of checkpoints of a run whose weights are averaged.

    Raises:
        CheckpointError: The source does not exist or cannot be read; or it is not a run, but `weights` or
            `average_last` selects weights of a run.
    """
    run = find_run(source, runs)
    if run is not None:
        folder, named = run
        loaded = _read_run(source, named, weights, average_last)
        config = _read_model_config(folder, step_of(loaded.folder))
        adapter = read_adapter(folder)
        state = loaded.state if adapter is None else merge_lora(loaded.state, config.num_heads, adapter)
        record, tokenizer = read_task_record(folder), folder / TOKENIZER_FOLDER
        return weights_from_state(str(loaded.folder), config, state, record.get("head"), record, tokenizer)
    if weights != "auto" or average_last != 1:
        raise CheckpointError(
            f"{source} is not a run, so the selection of weights ({weights}, mean of {average_last}) does not apply. "
            "Only a run has several sets of weights. Remove the selection, or give a run."
        )
    if "://" in source:
        raise CheckpointError(
            f"{source} is not a checkpoint of a run in {runs}. A checkpoint can only be read with its run folder. Give "
            "the run folder, or set `runs` to the folder that contains it."
        )
    if source.startswith((".", "/", "~")) and not Path(source).is_dir():
        raise CheckpointError(f"{source} does not exist. Give a run id, a folder, or a name on the Hugging Face hub.")
    if Path(source).is_dir():
        return load_pretrained(source)
    try:
        return load_pretrained(source)
    except CheckpointError as error:
        raise CheckpointError(f"there is no run {source!r} in {runs}, and {error}") from error


def find_adapter(source: str, runs: Path, weights: Weights = "auto", average_last: int = 1) -> TrainedAdapter:
    """Reads the weights of a run and its low-rank updates without merging them.

    Args:
        source: See `find_weights`.
        runs: See `find_weights`.
        weights: See `find_weights`.
        average_last: See `find_weights`.

    Raises:
        CheckpointError: The source is not a run with an adapter, it extended its vocabulary, or it cannot be read.
    """
    return find_adapter_weights(source, runs, weights, average_last)[0]


def find_adapter_weights(
    source: str, runs: Path, weights: Weights = "auto", average_last: int = 1
) -> tuple[TrainedAdapter, PretrainedWeights]:
    """Reads a run like `find_adapter`. Returns also its weights without the updates.

    Raises:
        CheckpointError: See `find_adapter`.
    """
    run = find_run(source, runs)
    adapter = read_adapter(run[0]) if run is not None else None
    if run is None or adapter is None:
        raise CheckpointError(
            f"{source} is not a run with an adapter. Only a run that was trained with adapter=lora has one. Give such "
            "a run, or use lora=merge to export another one."
        )
    config = read_config(run[0])
    if config.get("extend_vocabulary"):
        raise CheckpointError(
            f"{source} extended the vocabulary of its starting weights. An adapter holds no rows for new tokens. Use "
            "lora=merge, which writes the whole model."
        )
    loaded = _read_run(source, run[1], weights, average_last)
    base, record = config["init_from"], read_task_record(run[0])
    frozen = {name: tensor for name, tensor in loaded.state.items() if not is_update(name)}
    unmerged = weights_from_state(
        str(loaded.folder),
        _read_model_config(run[0], step_of(loaded.folder)),
        frozen,
        record.get("head"),
        record,
        run[0] / TOKENIZER_FOLDER,
    )
    return TrainedAdapter(adapter, loaded.state, base if find_run(base, runs) is None else None), unmerged


def _read_model_config(folder: Path, step: int) -> EncoderConfig:
    """Reads the encoder configuration under which a step of a run was trained."""
    file = folder / CONFIG_FILE
    with reading_record(file, "Restore the file"):
        values = model_at(read_config(folder), step)
        try:
            return EncoderConfig(**values)
        except ConfigError as error:
            raise CheckpointError(f"{file} describes an encoder that Cloze cannot build: {error}") from error


def read_adapter(folder: Path) -> LoraSettings | None:
    """Reads the adapter settings of the run in a folder; None if the run trains the weights themselves.

    Raises:
        CheckpointError: The record is damaged.
    """
    settings = read_config(folder).get("adapter")
    if not settings:
        return None
    try:
        adapter: LoraSettings = check_value("adapter", settings, LoraSettings)
        return adapter
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} is damaged: {error} Restore the file.") from error


def _read_run(source: str, named: Location, weights: Weights, average_last: int) -> "Loaded[dict[str, Tensor]]":
    # Imported here because an export needs no reader of checkpoints, whose imports take almost a second.
    from framework.checkpoint.load import load_newest_intact, read_full_state

    checkpoint, falls_back = find_checkpoint(named)
    loaded = load_newest_intact(checkpoint, lambda each: read_full_state(each, weights, average_last), falls_back)
    if loaded.damage_message is not None and process_info().rank == 0:
        # Not to standard output, which may carry predictions.
        sys.stderr.write(f"{source}: {loaded.damage_message}\n")
    return loaded


def starting_values(
    weights: PretrainedWeights | None, config: EncoderConfig, seed: int
) -> Callable[[TaskModel], Iterator[tuple[str, Callable[[], Tensor]]]]:
    """Returns the initial values of a model, in the form that `EncoderModule` takes.

    Args:
        weights: Starting weights; parameters that they lack get fresh values. None: all values are fresh.
        config: Encoder configuration.
        seed: Seed of fresh values.

    Returns:
        Function of a model that yields, for each parameter, its name and a function that returns its full value.
    """

    def values(model: TaskModel) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        given = match_parameters(model, weights)[0] if weights is not None else {}
        makers = dict(initial_values(model, config, seed))
        makers |= {name: functools.partial(_itself, value) for name, value in given.items()}
        for follower, followed in followed_weights(model).items():
            if followed not in given:
                makers[followed] = makers[follower]
        yield from makers.items()

    return values


def followed_weights(model: TaskModel) -> dict[str, str]:
    """Returns the name of the followed weight of the head, by the name of its follower (`RewritingHead.followed`)."""
    if not isinstance(model.head, RewritingHead):
        return {}
    return {f"encoder.{follower}": f"head.{followed}" for follower, followed in model.head.followed.items()}


def _itself(value: Tensor) -> Tensor:
    return value
