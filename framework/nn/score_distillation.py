"""Losses that train scores of candidates to follow those of a teacher: for embeddings, rerankers and late interaction.

All functions take rows of candidates padded to a rectangle, with the relevant candidate in column 0, and return one
loss per row. A row without a pair of candidates has loss 0.
"""

import torch
from torch import Tensor, nn


def margin_losses(scores: Tensor, teacher_scores: Tensor, is_real: Tensor) -> Tensor:
    """Returns the squared errors of score differences (MarginMSE).

    The difference between the relevant candidate and each other candidate is compared with that of the teacher, so the
    scores may have any offset (Hofstätter et al. 2020, arXiv:2010.02666). The loss of a row is the mean over its other
    candidates.

    Args:
        scores: (rows, candidates) scores of the model, any floating dtype; the arithmetic is fp32.
        teacher_scores: (rows, candidates) scores of the teacher.
        is_real: (rows, candidates) bool, False for padding.

    Returns:
        (rows,) fp32.
    """
    scores, teacher_scores = scores.float(), teacher_scores.float()
    margins = scores[:, :1] - scores[:, 1:]
    errors = (margins - (teacher_scores[:, :1] - teacher_scores[:, 1:])).square()
    is_compared = is_real[:, 1:] & is_real[:, :1]
    return torch.where(is_compared, errors, 0.0).sum(dim=1) / is_compared.sum(dim=1).clamp(min=1)


def score_divergences(scores: Tensor, teacher_scores: Tensor, is_real: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns KL(teacher || model) between the distributions over the candidates of each row.

    The distributions are softmaxes of scores divided by the temperature. The divergence is multiplied by the square of
    the temperature, so that its gradient keeps its size (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Args:
        scores: (rows, candidates) scores of the model, any floating dtype; the arithmetic is fp32.
        teacher_scores: (rows, candidates) scores of the teacher.
        is_real: (rows, candidates) bool, False for padding.
        temperature: Temperature of both distributions, above 0.

    Returns:
        (rows,) fp32.
    """
    # A row of padding only has no distribution. Its first column counts as real, and its divergence is 0.
    is_counted = is_real | (
        ~is_real.any(dim=1, keepdim=True) & (torch.arange(is_real.shape[1], device=is_real.device) == 0)
    )
    lowest = torch.finfo(torch.float32).min
    log_model, log_teacher = (
        nn.functional.log_softmax((each.float() / temperature).masked_fill(~is_counted, lowest), dim=1)
        for each in (scores, teacher_scores)
    )
    differences = log_teacher.exp() * (log_teacher - log_model)
    return torch.where(is_counted, differences, 0.0).sum(dim=1) * temperature**2
