"""Embeds texts with the encoder of any trained model, as it was trained to pool or by the mean of its tokens."""

from collections.abc import Mapping
from typing import Any, Literal

from framework.modules.inference import Inference
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.task import TaskModel


def pooled_inference(
    inference: Inference,
    record: Mapping[str, Any],
    pooling: Literal["mean", "cls"] | None = None,
    normalize: bool | None = None,
) -> Inference:
    """Returns the inference of an embedding task that uses the encoder in memory.

    Args:
        inference: Model on its device.
        record: Record of the model's task (`Trained.record`).
        pooling: "mean" averages all tokens, "cls" takes the first token. None: the pooling of training, or "mean" if
            the record has none.
        normalize: Scale vectors to length 1. None: as the embedding model was trained; False for other models.
    """
    encoder = inference.model.encoder
    task = EmbeddingTask(
        max_length=record.get("config", {}).get("max_length") or encoder.config.max_sequence_length,
        pooling=pooling or record.get("pooling", "mean"),
        normalize=record.get("normalize", False) if normalize is None else normalize,
    )
    model = TaskModel(encoder, task.build_head(encoder, encoder.config))
    return Inference(
        model,
        task,
        inference.micro_batch_tokens,
        inference.precision,
        inference.device,
        inference.rank,
        inference.mesh,
    )
