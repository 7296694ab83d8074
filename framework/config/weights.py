"""Where weights start: a run, a checkpoint, an export or published weights, all read into one form on the CPU.

The order of starts, stated once: the run's newest complete checkpoint (see run_folder.py) > `init_from` (here) > fresh
values from the seed (framework.nn.initialization).
"""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from framework.checkpoint.layout import CHECKPOINTS
from framework.checkpoint.load import Loaded, Weights, newest_whole, read_full_state
from framework.checkpoint.storage import Location, location
from framework.config.nodes import check_value
from framework.config.run_folder import (
    TOKENIZER_FOLDER,
    find_checkpoint,
    read_config,
    read_task_record,
    saved_checkpoints_folder,
)
from framework.distributed.processes.environment import process_info
from framework.errors import CheckpointError, ConfigError, reading_record
from framework.exports.adapters import TrainedAdapter
from framework.models.config import EncoderConfig
from framework.nn.initialization import initial_values
from framework.nn.lora import LoraSettings, merge_lora
from framework.published.pretrained import PretrainedWeights, load_pretrained, match_parameters, weights_from_state
from framework.tasks.task import TaskModel
from framework.tracking.run_files import CONFIG_FILE
from framework.tracking.run_status import named_run


def find_run(source: str, runs: Path) -> tuple[Path, Location] | None:
    """The run folder that a name means, and the folder in which to look for its checkpoint; None where it means no run.

    Args:
        source: Run id in `runs` or one of its sub-folders, such as a sweep; the path of a run folder; or the path or
            URL of a checkpoint.
        runs: The folder that holds the run folders.

    Raises:
        CheckpointError: Several runs have the id.
    """
    named = named_run(source, runs)
    if named is not None and (named / CONFIG_FILE).is_file():
        return named, named
    checkpoint = location(source)
    checkpoints = checkpoint.parent
    # Those that are kept elsewhere are in a folder of the run's id.
    folder = Path(source).parent.parent if checkpoints.name == CHECKPOINTS else runs / checkpoints.name
    if (folder / CONFIG_FILE).is_file() and saved_checkpoints_folder(folder).resolve() == checkpoints.resolve():
        return folder, checkpoint
    return None


def find_weights(source: str, runs: Path, weights: Weights = "auto", average_last: int = 1) -> PretrainedWeights:
    """Reads weights from a run (id or folder), a checkpoint, an export, a Hugging Face folder or hub name.

    What a run trained as low-rank updates is added to its weights.

    Args:
        source: A run id below `runs`, or a path, or a name on the Hugging Face hub.
        runs: The folder that holds the run folders.
        weights: Which ones of a run (`framework.checkpoint.load.read_full_state`).
        average_last: Over how many checkpoints of a run the mean is taken.

    Raises:
        CheckpointError: Nothing is found there, it cannot be read, or what is no run is to have other weights than one.
    """
    run = find_run(source, runs)
    if run is not None:
        folder, named = run
        config = _read_model_config(folder)
        loaded = _read_run(source, named, weights, average_last)
        adapter = read_adapter(folder)
        state = loaded.state if adapter is None else merge_lora(loaded.state, config.num_heads, adapter)
        record, tokenizer = read_task_record(folder), folder / TOKENIZER_FOLDER
        return weights_from_state(str(loaded.folder), config, state, record.get("head"), record, tokenizer)
    if weights != "auto" or average_last != 1:
        raise CheckpointError(
            f"{source} is no run, so it has one set of weights and no choice among them ({weights}, mean of "
            f"{average_last}); leave the choice out, or give a run."
        )
    if "://" in source:
        raise CheckpointError(
            f"{source} is no checkpoint of a run in {runs}; give the run folder, or where `runs` are."
        )
    if source.startswith((".", "/", "~")) and not Path(source).is_dir():
        raise CheckpointError(f"{source} is not there; give a run id, a folder, or a name on the Hugging Face hub.")
    if Path(source).is_dir():
        return load_pretrained(source)
    try:
        return load_pretrained(source)
    except CheckpointError as error:
        raise CheckpointError(f"there is no run {source!r} in {runs}, and {error}") from error


def find_adapter(source: str, runs: Path, weights: Weights = "auto", average_last: int = 1) -> TrainedAdapter:
    """Reads the weights of a run and its updates beside them; arguments as of `find_weights`.

    Raises:
        CheckpointError: It is no run that trained updates, or it cannot be read.
    """
    run = find_run(source, runs)
    adapter = read_adapter(run[0]) if run is not None else None
    if run is None or adapter is None:
        raise CheckpointError(
            f"{source} is no run with an adapter, so there is none to be written; give a run that was trained with "
            "adapter=lora, or use lora=merge."
        )
    state = _read_run(source, run[1], weights, average_last).state
    base = read_config(run[0])["init_from"]
    return TrainedAdapter(adapter, state, base if find_run(base, runs) is None else None)


def _read_model_config(folder: Path) -> EncoderConfig:
    file = folder / CONFIG_FILE
    with reading_record(file, "Restore the file"):
        values = read_config(folder)["model"]
        try:
            return EncoderConfig(**values)
        except ConfigError as error:
            raise CheckpointError(f"{file} describes no encoder that Cloze can build: {error}") from error


def read_adapter(folder: Path) -> LoraSettings | None:
    """The settings of the updates that the run in a folder trains; None where it trains the weights themselves.

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


def _read_run(source: str, named: Location, weights: Weights, average_last: int) -> Loaded[dict[str, Tensor]]:
    checkpoint, falls_back = find_checkpoint(named)
    loaded = newest_whole(checkpoint, lambda each: read_full_state(each, weights, average_last), falls_back)
    if loaded.remark is not None and process_info().rank == 0:
        # Not to standard output, which may carry predictions.
        sys.stderr.write(f"{source}: {loaded.remark}\n")
    return loaded


def starting_values(
    weights: PretrainedWeights | None, config: EncoderConfig, seed: int
) -> Callable[[TaskModel], Iterator[tuple[str, Callable[[], Tensor]]]]:
    """What `EncoderModule` takes: from a model to a maker of each parameter's full value.

    Args:
        weights: Where they have a value it is taken; None: all values are fresh.
        config: Of the encoder.
        seed: Of fresh values.
    """

    def values(model: TaskModel) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        given = match_parameters(model, weights)[0] if weights is not None else {}
        for name, fresh in initial_values(model, config, seed):
            yield name, functools.partial(_itself, given[name]) if name in given else fresh

    return values


def _itself(value: Tensor) -> Tensor:
    return value
