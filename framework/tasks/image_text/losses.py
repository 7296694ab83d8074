"""Losses of pictures and captions over all pairs of a step. They compute cosines."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from framework.tasks.embedding.losses import Rows, info_nce, is_known_match
from framework.tasks.image_text.features import CAPTION, PICTURE


def contrast(rows: Rows) -> Tensor:
    """InfoNCE in both directions with a learned temperature (Radford et al. 2021, "CLIP", arXiv:2103.00020, figure 3).

    Departure: other captions of a picture, and other pictures with an equal caption, are no negatives
    (`framework.tasks.embedding.losses.is_known_match`).

    Args:
        rows: Rows with pictures as anchors and captions as positives; `scales` (rows,), the same in all rows.

    Returns:
        (2,): the sum over pictures, each compared with all captions, and the sum over captions.
    """
    # The gradient of the scale flows through one row, which is as exact as a mean over all.
    return info_nce(rows, 1.0 / rows["scales"][:1])


def sigmoid_pairs(rows: Rows) -> Tensor:
    """Sigmoid loss: each pair of a picture and a caption is classified as a match or not.

    -log sigmoid(z * (scale * cosine + bias)), z = 1 for a match and -1 otherwise, summed over all pairs (Zhai et al.
    2023, "SigLIP", arXiv:2303.15343, equation 1, which divides by the number of pictures). Departure: as in `contrast`,
    known matches are no negatives.

    Args:
        rows: Rows as in `contrast`, with `biases` (rows,), the same in all rows.

    Returns:
        Scalar sum.
    """
    picture, caption = (
        {name: value[rows["members"] == member] for name, value in rows.items()} for member in (PICTURE, CAPTION)
    )
    vectors = normalize(picture["embeddings"], dim=1), normalize(caption["embeddings"], dim=1)
    scores = rows["scales"][:1] * (vectors[0] @ vectors[1].T) + rows["biases"][:1]
    signs = 2.0 * torch.eye(len(scores), device=scores.device) - 1.0
    return -logsigmoid(signs * scores).masked_fill(is_known_match(picture, caption), 0.0).sum()
