"""The vectors of texts that the ONNX file of an embedding model returns beside the outputs of its class.

sentence-transformers computes them after the class, so a program that only has onnxruntime would have to pool, project
and scale by itself. The outputs of the class stay, because sentence-transformers reads them (`backend="onnx"`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from framework.published.dense import PUBLISHED_PROJECTION
from framework.published.files import DENSE_FILE, EXPORT_RECORD_FILE, MODULES_FILE, read_json, read_optional_safetensors
from framework.published.kinds import LATE_INTERACTION, SPARSE_EMBEDDING

HIDDEN_STATES, SCORES = "last_hidden_state", "logits"
"""Outputs of a base class, and of one for masked words."""


@dataclass(frozen=True)
class TextVectors:
    """A further output of the ONNX file.

    Attributes:
        name: Name of the output.
        meaning: Description of its contents, for the model card.
        compute: Function of the outputs of the class by name, with shape (batch, seq, channels), and of the attention
            mask (batch, seq), 1 for real tokens.
    """

    name: str
    meaning: str
    compute: Callable[[Mapping[str, Tensor], Tensor], Tensor]


def text_vectors(folder: Path) -> TextVectors | None:
    """Returns the vectors that the task of an export computes; None for a task without vectors.

    Args:
        folder: Folder that `export_huggingface` wrote.
    """
    if not (folder / MODULES_FILE).is_file():
        return None
    record = read_json(folder / EXPORT_RECORD_FILE)
    if record["head"] == LATE_INTERACTION.name:
        projection = read_optional_safetensors(folder / DENSE_FILE)[PUBLISHED_PROJECTION].float()
        return TextVectors(
            "token_vectors",
            f"one vector of {len(projection)} channels and length 1 per token; 0 for padding",
            lambda outputs, mask: normalize(_real(outputs[HIDDEN_STATES], mask) @ projection.T, dim=-1),
        )
    if record["head"] == SPARSE_EMBEDDING.name:
        return TextVectors("word_weights", "the weight of each word of the vocabulary per text", _word_weights)
    return _pooled(record["task"].get("pooling", "cls") == "mean", bool(record["task"].get("normalize")))


def _word_weights(outputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    return _real(outputs[SCORES], mask).relu().amax(dim=1).log1p()


def _real(values: Tensor, mask: Tensor) -> Tensor:
    """Returns (batch, seq, channels) values with 0 for padding, which may hold NaN if it attends to no token."""
    return torch.where(mask[..., None] == 1, values, 0.0)


def _pooled(is_mean: bool, is_scaled: bool) -> TextVectors:
    def compute(outputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        hidden_states = outputs[HIDDEN_STATES]
        if is_mean:
            vectors = _real(hidden_states, mask).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        else:
            vectors = hidden_states[:, 0]
        return normalize(vectors, dim=-1) if is_scaled else vectors

    kind = "the mean of the tokens" if is_mean else "the first token"
    scale = ", scaled to length 1" if is_scaled else ""
    return TextVectors("sentence_embedding", f"one vector per text, {kind}{scale}", compute)
