"""Head of masked words of a trained model: of a pre-training run, or of a published model that was saved with it."""

import torch

from framework.errors import ConfigError
from framework.models.encoder import TransformerEncoder
from framework.modules.inference import Inference
from framework.published.pretrained import PretrainedWeights
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.task import TaskModel


def check_masked_words(weights: PretrainedWeights, audit: str) -> None:
    """Checks that weights contain a trained head of masked words.

    Args:
        weights: Weights of the model.
        audit: Name of the audit, for messages.

    Raises:
        ConfigError: They do not.
    """
    with torch.device("meta"):
        head = build_pretraining_head(TransformerEncoder(weights.config), weights.config, nsp=False)
    needed = {name for name, _ in head.named_parameters()} - {_TIED}
    missing = sorted(needed - weights.heads.keys())
    if missing:
        raise ConfigError(
            f"{weights.source} has no trained head of masked words (it lacks {missing[0]}). The audit {audit} compares "
            "probabilities of masked words. Audit a pre-training run, its export, or a published model with this head."
        )


def masked_word_inference(inference: Inference, weights: PretrainedWeights, max_length: int) -> Inference:
    """Returns the inference of masked words, which uses the encoder in memory.

    Args:
        inference: Model on its device.
        weights: Weights with the head; `check_masked_words` has passed.
        max_length: Largest number of tokens of a sequence.
    """
    encoder = inference.model.encoder
    with torch.device("meta"):
        head = build_pretraining_head(encoder, encoder.config, nsp=False)
    own = {
        name: weights.heads[name].to(inference.device, torch.float32)
        for name, _ in head.named_parameters()
        if name != _TIED
    }
    head.load_state_dict(own, strict=False, assign=True)
    return Inference(
        TaskModel(encoder, head).eval().requires_grad_(False),
        PretrainingTask(sequence_length=max_length, nsp=False),
        inference.micro_batch_tokens,
        inference.precision,
        inference.device,
        inference.rank,
        inference.mesh,
    )


_TIED = "mlm.decoder.weight"
"""Parameter that the head shares with the word embeddings."""
