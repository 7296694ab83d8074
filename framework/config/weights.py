"""Where weights start: a run, a checkpoint, an export or published weights, all read into one form on the CPU.

The order of starts, stated once: the run's newest complete checkpoint (see run_folder.py) > `init_from` (here) > fresh
values from the seed (framework.nn.initialization).
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from framework.checkpoint.load import read_full_state
from framework.config.run_folder import CONFIG_FILE, TOKENIZER_FOLDER, find_checkpoint, read_config
from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.models.pretrained import PretrainedWeights, load_pretrained, match_parameters, weights_from_state
from framework.nn.initialization import initial_values
from framework.tasks.task import TaskModel


def find_run(source: str, runs: Path) -> tuple[Path, Path] | None:
    """The run folder that a name means, and the folder in which to look for its checkpoint; None where it means no run.

    Args:
        source: A run id below `runs`, the path of a run folder, or of a checkpoint in one.
        runs: The folder that holds the run folders.
    """
    for folder in (runs / source, Path(source)):
        if (folder / CONFIG_FILE).is_file():
            return folder, folder
    if (Path(source).parent.parent / CONFIG_FILE).is_file() and Path(source).parent.name == "checkpoints":
        return Path(source).parent.parent, Path(source)
    return None


def find_weights(source: str, runs: Path) -> PretrainedWeights:
    """Reads weights from a run (id or folder), a checkpoint, an export, a Hugging Face folder or hub name.

    Args:
        source: A run id below `runs`, or a path, or a name on the Hugging Face hub.
        runs: The folder that holds the run folders.

    Raises:
        CheckpointError: Nothing is found there, or it cannot be read.
    """
    run = find_run(source, runs)
    if run is not None:
        folder, checkpoint = run
        config = EncoderConfig(**read_config(folder)["model"])
        return weights_from_state(
            source, config, read_full_state(find_checkpoint(checkpoint)), tokenizer_dir=folder / TOKENIZER_FOLDER
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
