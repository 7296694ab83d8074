"""Reads a trained model once and uses it from Python: `load("runs/mine").predict(["one text", "another"])`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.asked_rows import join_rows, read_given
from framework.config.command_schema import InferenceConfig
from framework.config.nodes import check_arguments
from framework.config.trained import Trained, build_inference, check_names_task, open_model
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.environment import process_info
from framework.errors import DistributedError
from framework.modules.inference import Inference
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
        """Returns the task with its labels; of a published model of others, the task of embedding texts."""
        return self._trained.task

    def predict(
        self, rows: Sequence[str | Mapping[str, Any]], on_bad_row: Literal["error", "skip"] = "error"
    ) -> list[dict[str, Any]]:
        """Predicts rows; the results are those of `framework.predict`.

        Args:
            rows: Texts, for tasks that read `text` alone; or mappings with the columns of training, or
                those of the task.
            on_bad_row: Handling of rows that cannot be predicted: "error" raises, "skip" returns nulls and an `error`
                for them.

        Returns:
            One prediction per row, in order, behind the columns that the task read.

        Raises:
            CheckpointError: The model does not say which task it was trained for.
            ConfigError: Texts are given, but the task does not read `text` alone.
            DataError: A row is bad and `on_bad_row` is "error", or all rows are bad.
        """
        check_names_task(self._trained)
        return self._predicted(self._inference, rows, on_bad_row)

    def embed(
        self, texts: Sequence[str], pooling: Literal["mean", "cls"] | None = None, normalize: bool | None = None
    ) -> np.ndarray:
        """Embeds texts: pools the hidden states of the encoder.

        Args:
            texts: Texts; those that are too long lose their end.
            pooling: "mean" over all tokens, or "cls", the first token. None: as the model was trained, else "mean".
            normalize: Scale vectors to length 1. None: as an embedding model was trained; False for other models.

        Returns:
            (texts, hidden) fp32, in the order of the texts.
        """
        task, record = self.task, self._trained.record
        as_trained = isinstance(task, EmbeddingTask) and pooling is None and normalize is None
        inference = (
            self._inference
            if as_trained
            else self._pooled(
                EmbeddingTask(
                    max_length=record.get("config", {}).get("max_length")
                    or self.model.encoder.config.max_sequence_length,
                    pooling=pooling or record.get("pooling", "mean"),
                    normalize=record.get("normalize", False) if normalize is None else normalize,
                )
            )
        )
        vectors = [row["embedding"] for row in self._predicted(inference, texts, "error")]
        return np.array(vectors, dtype=np.float32).reshape(len(vectors), self.model.encoder.config.hidden_size)

    def _pooled(self, task: EmbeddingTask) -> Inference:
        """Returns the inference of a task over the encoder that is in memory."""
        encoder, inference = self.model.encoder, self._inference
        model = TaskModel(encoder, task.build_head(encoder, encoder.config))
        return Inference(model, task, inference.micro_batch_tokens, inference.precision, inference.device)

    def _predicted(
        self, inference: Inference, rows: Sequence[str | Mapping[str, Any]], on_bad_row: Literal["error", "skip"]
    ) -> list[dict[str, Any]]:
        given = [rows] if isinstance(rows, str | Mapping) else list(rows)
        if not given:
            return []
        layout = self._trained.file_layout if inference is self._inference else None
        asked = read_given(given, inference.task, self.tokenizer, on_bad_row, layout)
        source = inference.task.build_source([each.row for each in asked if each.row is not None], self.tokenizer)
        return join_rows(asked, inference.predict(source))


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
        average_last: More than 1: the mean over so many of the last checkpoints of a run.
        task: Keys of the task with values that training did not have, for example `{"threshold": 0.3}`.
        precision: "auto", "fp32", "bf16" or "fp16".
        micro_batch_tokens: Largest number of tokens of a forward pass.
        trust: Modules outside of Cloze whose classes the run or export may name. Their code is executed.

    Raises:
        FrameworkError: There is no such model, it cannot be read, or an argument is wrong.
    """
    world_size = process_info().world_size
    if world_size > 1:
        raise DistributedError(
            f"load() is called in one of {world_size} processes. It serves a single process. Start framework.predict "
            "under the launcher, where processes share the rows, or load the model without the launcher."
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
