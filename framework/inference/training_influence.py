"""Training rows of a run that influenced its predictions, by TracIn over the kept checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from framework.checkpoint.layout import complete_checkpoints, read_state, step_of
from framework.checkpoint.storage import Location
from framework.config.command_schema import ExplainConfig
from framework.config.phases import PHASE, phase_of
from framework.data.facts import split_location
from framework.data.planning.plan import SequenceSource
from framework.errors import ConfigError, DataError, reading_record
from framework.modules.explanations.influence import influences
from framework.modules.inference import Inference
from framework.runs.folder import read_config, saved_checkpoints_folder
from framework.runs.provenance import data_fingerprint
from framework.runs.record_files import read_starts
from framework.runs.task_parts import build_data_component
from framework.runs.trained import Trained, build_trained_model
from framework.runs.weights import find_weights, read_adapter
from framework.tasks.explanation import Explained, one_item
from framework.tasks.step_level import StepLevelTask

_MOST_INFLUENCES = 2**28
"""Number of pairs of an explained score and a training item whose influences fit into 2 GiB."""


@dataclass(frozen=True)
class TrainingRows:
    """Training rows of a run, and the checkpoints by which their influence is computed.

    Attributes:
        source: Items of the training split.
        names: Location of each row: file and row.
        row_of_item: (items,) index of the row of each item.
        checkpoints: Kept checkpoints, oldest first; with phases, those of the newest one, whose rows these are.
        learning_rates: Learning rate of the step before each checkpoint.
        num_layers: Number of last layers of the encoder whose gradients count, beside the head.
        runs: Folder that contains the run folders.
    """

    source: SequenceSource
    names: Sequence[str]
    row_of_item: np.ndarray
    checkpoints: Sequence[Location]
    learning_rates: Sequence[float]
    num_layers: int
    runs: Path

    def influences(
        self, trained: Trained, inference: Inference, source: SequenceSource, explained: Sequence[Explained]
    ) -> np.ndarray:
        """Returns the influence of each item on each score: the sum over checkpoints of learning rate x inner product.

        Collective: all ranks must call.

        Args:
            trained: Run.
            inference: Device, precision and ranks of the passes.
            source: Source of the explained items.
            explained: Explained scores.

        Returns:
            (scores, items) float64, see `framework.modules.explanations.influence.influences`.

        Raises:
            ConfigError: There are too many pairs, or the head has parameters without a rule.
            CheckpointError: A checkpoint cannot be read.
        """
        if len(explained) * len(self.source) > _MOST_INFLUENCES:
            raise ConfigError(
                f"{len(explained):,} explanations and {len(self.source):,} training sequences are more than "
                f"{_MOST_INFLUENCES:,} pairs. Their influences must fit into memory. Explain fewer rows at once."
            )
        total = np.zeros((len(explained), len(self.source)))
        for folder, rate in zip(self.checkpoints, self.learning_rates, strict=True):
            weights = find_weights(str(folder), self.runs, "raw")
            model = build_trained_model(replace(trained, weights=weights), inference.device)
            at_checkpoint = inference.with_model(model)
            total += rate * influences(
                at_checkpoint, trained.tokenizer, source, explained, self.source, self.num_layers
            )
        return total

    def strongest(self, values: np.ndarray, number: int, trained: Trained) -> dict[str, list[dict[str, Any]]]:
        """Returns the rows with the largest influence for and against a score, strongest first.

        Args:
            values: (items,) influences on the score. Those of the items of one row are added.
            number: Largest number of rows on each side.
            trained: Run.

        Returns:
            `for` and `against`. Each row has its `influence`, `file`, `place`, `row` and `line` as far as they are
            known, and the normalised `text` of its item with the largest influence.
        """
        sums = np.bincount(self.row_of_item, values, len(self.names))
        order = np.argsort(-sums, kind="stable")

        def described(row: int) -> dict[str, Any]:
            items = np.flatnonzero(self.row_of_item == row)
            item = int(items[np.abs(values[items]).argmax()])
            (text,) = trained.tokenizer.decode_batch([one_item(self.source, item).input_ids.tolist()])
            return {"influence": float(sums[row]), **split_location(self.names[row]), "text": text}

        return {
            "for": [described(row) for row in order[:number].tolist() if sums[row] > 0],
            "against": [described(row) for row in order[::-1][:number].tolist() if sums[row] < 0],
        }


def open_training_rows(settings: ExplainConfig, trained: Trained) -> TrainingRows:
    """Reads the training rows of a run again, and finds its checkpoints. No weights are read.

    Args:
        settings: Settings of the command.
        trained: Run.

    Raises:
        ConfigError: The model is an export or has an adapter, the loss is no sum over rows, or the newest phase of the
            run has no checkpoint.
        DataError: The data differs from that of the training.
    """
    given, folder, task = f"training_rows is {settings.training_rows}", trained.folder, trained.task
    if isinstance(task, StepLevelTask):
        raise ConfigError(
            f"{given}, but the loss of {type(task).__name__} compares all rows of a step with each other. Influence "
            "needs a loss of each row. Set training_rows=0."
        )
    if folder is None or trained.data is None:
        raise ConfigError(
            f"{given}, but {settings.run} is an export, which has no checkpoints and no training data. Influence needs "
            "both. Give the run, or set training_rows=0."
        )
    if read_adapter(folder) is not None:
        raise ConfigError(
            f"{given}, but {settings.run} trains an adapter. Influence is computed for weights that are trained "
            "themselves. Set training_rows=0."
        )
    config = read_config(folder)
    phase = config.get(PHASE)
    found = complete_checkpoints(saved_checkpoints_folder(folder))
    checkpoints = [each for each in found if phase_of(config, step_of(each)) == phase]
    if not checkpoints:
        which = f"no checkpoint of its phase {phase}" if phase else "no checkpoint"
        raise ConfigError(
            f"{given}, but {settings.run} has {which}. Influence is computed at checkpoints. Train further, or set "
            "training_rows=0."
        )
    with reading_record(checkpoints[0].parent, "Restore the file"):
        base_rate = float(config["optimizer"].get("lr", 1.0))
        rates = [base_rate * float(read_state(each)["schedule"]["factor"]) for each in checkpoints]
    task.keeps_training_rows = True
    sources = task.build_sources(build_data_component(task, trained.data), trained.tokenizer, seed=0)
    starts = [each for each in read_starts(folder) if each.get(PHASE) == phase]
    if starts and starts[0]["fingerprints"].get("data") not in (None, data_fingerprint(sources)):
        raise DataError(
            f"the data of {folder} is not the data of its training. Training rows are found by their position. Restore "
            "the original files, or set training_rows=0."
        )
    source: Any = sources["train"]
    rows: dict[str, int] = {}
    row_of_item = np.array([rows.setdefault(each.location, len(rows)) for each in source.records], dtype=np.int64)
    return TrainingRows(source, list(rows), row_of_item, checkpoints, rates, settings.layers, Path(settings.runs))
