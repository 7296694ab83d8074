"""Draws from softmax distributions with a key for each row, so that a draw does not depend on the other rows."""

import torch
from torch import Tensor

from framework.nn.dropout import random_words

_BITS = 31
_CHUNK_ELEMENTS = 1 << 20
"""Scores that are drawn at once on a CPU, so that they stay in its cache. On a GPU it is 64 times as many."""


@torch.no_grad()
def draw_classes(logits: Tensor, keys: Tensor, temperature: float = 1.0) -> Tensor:
    """Draws one class of each row from softmax(logits / temperature).

    The class is argmax(logits / temperature + g), where g is Gumbel noise (Gumbel 1954; Maddison et al. 2014,
    arXiv:1411.0030, section 2). The noise of each class is a hash of the key of the row. Two runs whose logits differ
    by rounding draw the same class unless its score and the next one are as close as the rounding error; a search in
    cumulated probabilities would differ more often, because each of its many boundaries moves.

    Args:
        logits: (rows, classes), any floating dtype; the arithmetic is fp32.
        keys: (rows,) int64, random bits that differ between rows.
        temperature: Below 1 sharpens the distribution, above 1 flattens it.

    Returns:
        (rows,) int64.
    """
    num_rows, num_classes = logits.shape
    elements = _CHUNK_ELEMENTS if logits.device.type == "cpu" else 64 * _CHUNK_ELEMENTS
    step = max(1, elements // num_classes)
    parts = [
        _draw(logits[start : start + step], keys[start : start + step], temperature)
        for start in range(0, num_rows, step)
    ]
    return torch.cat(parts) if parts else keys.new_zeros(0)


def _draw(logits: Tensor, keys: Tensor, temperature: float) -> Tensor:
    num_classes = logits.shape[1]
    # Two classes for each word, of whose halves the lower 31 bits are random.
    bits = random_words(keys, -(-num_classes // 2)).view(torch.int32)[:, :num_classes] & ((1 << _BITS) - 1)
    uniform = bits.float().add_(0.5).mul_(2.0**-_BITS)
    # -log(-log(1 - u)): the largest noise, which decides, comes from small u, whose logarithm is exact.
    noise = uniform.neg_().log1p_().neg_().log_()
    return (logits.float() / temperature).sub_(noise).argmax(dim=1)
