"""Masked-word head of a trained model: of a pre-training run, or of a published model that was saved with this head."""

import torch

from framework.modules.inference import Inference
from framework.published.pretrained import PretrainedWeights
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.task import Task, TaskModel


def masked_word_task(task: Task, weights: PretrainedWeights, longest: int | None = None) -> PretrainingTask | None:
    """Returns the task of predicting masked words; None if the model has no trained head for it.

    Args:
        task: Task of the model.
        weights: Weights of the model.
        longest: Largest number of tokens of a sequence of a published model; None: as many as it has positions.
    """
    if isinstance(task, PretrainingTask):
        return task
    if weights.head_kind != PretrainingTask.head_kind:
        return None
    positions = weights.config.max_sequence_length
    return PretrainingTask(
        sequence_length=positions if longest is None else min(positions, longest),
        nsp=any(name.startswith("nsp.") for name in weights.heads),
    )


def masked_word_inference(inference: Inference, weights: PretrainedWeights, task: PretrainingTask) -> Inference:
    """Returns the inference of masked words, which uses the encoder in memory.

    Args:
        inference: Model on its device.
        weights: Weights of the model.
        task: Result of `masked_word_task`.
    """
    if inference.task is task:
        return inference
    encoder = inference.model.encoder
    with torch.device("meta"):
        head = task.build_head(encoder, encoder.config)
    # The weight of the decoder is that of the word embeddings, which are in memory.
    own = {
        name: weights.heads[name].to(inference.device, torch.float32)
        for name, parameter in head.named_parameters()
        if parameter.is_meta
    }
    head.load_state_dict(own, strict=False, assign=True)
    return Inference(
        TaskModel(encoder, head.requires_grad_(False)),
        task,
        inference.micro_batch_tokens,
        inference.precision,
        inference.device,
        inference.rank,
        inference.mesh,
    )
