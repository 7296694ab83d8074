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
from framework.checkpoint.load import Weights, newest_whole, read_full_state
from framework.checkpoint.storage import Location, location
from framework.config.run_folder import (
    CONFIG_FILE,
    TOKENIZER_FOLDER,
    find_checkpoint,
    read_config,
    saved_checkpoints_folder,
)
from framework.distributed.environment import process_info
from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.models.pretrained import PretrainedWeights, load_pretrained, match_parameters, weights_from_state
from framework.nn.initialization import initial_values
from framework.tasks.task import TaskModel


def find_run(source: str, runs: Path) -> tuple[Path, Location] | None:
    """The run folder that a name means, and the folder in which to look for its checkpoint; None where it means no run.

    Args:
        source: A run id below `runs`, the path of a run folder, or the path or URL of a checkpoint of one.
        runs: The folder that holds the run folders.
    """
    for folder in (runs / source, Path(source)):
        if (folder / CONFIG_FILE).is_file():
            return folder, folder
    checkpoint = location(source)
    checkpoints = checkpoint.parent
    # Those that are kept elsewhere are in a folder of the run's id.
    folder = Path(source).parent.parent if checkpoints.name == CHECKPOINTS else runs / checkpoints.name
    if (folder / CONFIG_FILE).is_file() and saved_checkpoints_folder(folder).resolve() == checkpoints.resolve():
        return folder, checkpoint
    return None


def find_weights(source: str, runs: Path, weights: Weights = "auto", average_last: int = 1) -> PretrainedWeights:
    """Reads weights from a run (id or folder), a checkpoint, an export, a Hugging Face folder or hub name.

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
        checkpoint, falls_back = find_checkpoint(named)
        config = EncoderConfig(**read_config(folder)["model"])
        loaded = newest_whole(checkpoint, lambda each: read_full_state(each, weights, average_last), falls_back)
        if loaded.remark is not None and process_info().rank == 0:
            # Not to standard output, which may carry predictions.
            sys.stderr.write(f"{source}: {loaded.remark}\n")
        return weights_from_state(str(loaded.folder), config, loaded.state, tokenizer_dir=folder / TOKENIZER_FOLDER)
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
    return load_pretrained(source)


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
