"""Loads a trained model and uses it from Python: `load("runs/mine").predict(["one text", "another"])`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.command_schema import InferenceConfig
from framework.config.nodes import check_arguments
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.environment import process_info
from framework.errors import DistributedError
from framework.inference.input_rows import read_python_rows
from framework.inference.joined_rows import join_rows
from framework.modules.inference import Inference
from framework.modules.pooled import pooled_inference
from framework.runs.trained import Trained, build_inference, check_names_task, open_model
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.task import Task, TaskModel


class TrainedModel:
    """A trained model in the memory of this process.

    Args:
        trained: Weights, tokenizer and task.
        inference: The model on its device.
    """

    def __init__(self, trained: Trained, inference: Inference) -> None:
        self._trained = trained
        self._inference = inference

    @property
    def model(self) -> TaskModel:
        """Returns the encoder and the head, with their weights, on the device."""
        return self._inference.model

    @property
    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer with which the model was trained."""
        return self._trained.tokenizer

    @property
    def task(self) -> Task:
        """Returns the task with its labels; for a published model that Cloze did not train, the embedding task."""
        return self._trained.task

    def predict(
        self, rows: Sequence[str | Mapping[str, Any]], on_bad_row: Literal["error", "skip"] = "error"
    ) -> list[dict[str, Any]]:
        """Predicts rows, with the same results as `framework.predict`.

        Args:
            rows: Texts, for tasks that read only the field `text`; or mappings with the columns of training or with
                the fields of the task.
            on_bad_row: Handling of rows that cannot be predicted: "error" raises, "skip" returns nulls and an `error`
                for them.

        Returns:
            One mapping per row, in the order of the rows: the columns that the task read, then the prediction.

        Raises:
            CheckpointError: The model does not record the task that it was trained for.
            ConfigError: Texts are given, but the task reads other fields than `text`.
            DataError: A row cannot be predicted and `on_bad_row` is "error", or no row can be predicted.
        """
        check_names_task(self._trained)
        return self._predicted(self._inference, rows, on_bad_row)

    def embed(
        self, texts: Sequence[str], pooling: Literal["mean", "cls"] | None = None, normalize: bool | None = None
    ) -> np.ndarray:
        """Embeds texts by pooling the hidden states of the encoder.

        Args:
            texts: Texts. A text that is too long is truncated at its end.
            pooling: "mean" averages all tokens, "cls" takes the first token. None: the pooling of training, or "mean"
                if the model records none.
            normalize: Scale vectors to length 1. None: as the embedding model was trained; False for other models.

        Returns:
            (texts, hidden) fp32, in the order of the texts.
        """
        task, record = self.task, self._trained.record
        as_trained = isinstance(task, EmbeddingTask) and pooling is None and normalize is None
        inference = self._inference if as_trained else pooled_inference(self._inference, record, pooling, normalize)
        vectors = [row["embedding"] for row in self._predicted(inference, texts, "error")]
        return np.array(vectors, dtype=np.float32).reshape(len(vectors), self.model.encoder.config.hidden_size)

    def _predicted(
        self, inference: Inference, rows: Sequence[str | Mapping[str, Any]], on_bad_row: Literal["error", "skip"]
    ) -> list[dict[str, Any]]:
        given = [rows] if isinstance(rows, str | Mapping) else list(rows)
        if not given:
            return []
        layout = self._trained.file_layout if inference is self._inference else None
        inputs = read_python_rows(given, inference.task, self.tokenizer, on_bad_row, layout)
        source = inference.task.build_source([each.row for each in inputs if each.row is not None], self.tokenizer)
        return join_rows(inputs, inference.predict(source))


def load(
    source: str,
    *,
    runs: str = "runs",
    weights: Literal["auto", "raw", "ema"] = "auto",
    average_last: int = 1,
    task: Mapping[str, Any] | None = None,
    precision: str = "auto",
    micro_batch_tokens: int = 8192,
    trust: Sequence[str] = (),
) -> TrainedModel:
    """Reads a trained model onto the device of this process: the first GPU, else the CPU.

    Args:
        source: Run (id or folder), checkpoint, export, folder of a published model, or name on the Hugging Face Hub.
        runs: Folder of the runs.
        weights: Weights of a run: "raw" as trained, "ema" their moving average, "auto" the average if it was kept.
        average_last: Number of the newest checkpoints of a run whose weights are averaged; 1 averages none.
        task: Keys of the task with values that training did not have, for example `{"threshold": 0.3}`.
        precision: "auto", "fp32", "bf16" or "fp16".
        micro_batch_tokens: Largest number of tokens in a forward pass.
        trust: Modules outside of Cloze whose classes the run or export may name. Their code is executed.

    Raises:
        FrameworkError: The model does not exist or cannot be read, or an argument is invalid.
    """
    world_size = process_info().world_size
    if world_size > 1:
        raise DistributedError(
            f"load() was called in one of {world_size} processes. It supports only a single process. Start "
            "framework.predict under the launcher, which splits the rows over the processes, or load the model "
            "without the launcher."
        )
    values = {
        "run": str(source),
        "runs": str(runs),
        "weights": weights,
        "average_last": average_last,
        "task": None if task is None else dict(task),
        "precision": {"name": precision},
        "micro_batch_tokens": micro_batch_tokens,
        "trust": list(trust),
    }
    settings = InferenceConfig(**check_arguments("", values, InferenceConfig))
    trained = open_model(settings, settings.task)
    return TrainedModel(trained, build_inference(trained, settings.micro_batch_tokens, settings.precision.name))
