"""Differences between a model and its teacher on one packed batch: logits, hidden states, and relations of tokens."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from framework.batch import IGNORE_INDEX
from framework.nn.attention_bias import group_by_length


def logit_divergence_sum(logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns KL(teacher || model) of the classes, summed over targets (Hinton et al. 2015, arXiv:1503.02531).

    Both distributions are softmaxes of logits divided by the temperature. The sum is multiplied by the square of the
    temperature, so that its gradient keeps its size (section 2 of the paper). Rows that pad the vocabulary of one of
    the models are left out.

    Args:
        logits: (targets, classes) logits of the model, any floating dtype; the arithmetic is fp32. More dims before the
            last are allowed.
        teacher_logits: Logits of the teacher for the same targets.
        labels: (targets,) int64; a target with IGNORE_INDEX adds nothing.
        temperature: Temperature of both distributions, above 0.

    Returns:
        fp32 scalar.
    """
    num_classes = min(logits.shape[-1], teacher_logits.shape[-1])
    log_model, log_teacher = (
        (each[..., :num_classes].float() / temperature).log_softmax(dim=-1) for each in (logits, teacher_logits)
    )
    divergences = (log_teacher.exp() * (log_teacher - log_model)).sum(dim=-1)
    return torch.where(labels != IGNORE_INDEX, divergences, 0.0).sum() * temperature**2


def hidden_error_sum(hidden_states: Tensor, teacher_states: Tensor) -> Tensor:
    """Returns the squared difference of hidden states, averaged over channels and summed over tokens.

    TinyBERT (Jiao et al. 2020, arXiv:1909.10351, equation 8).

    Args:
        hidden_states: (tokens, channels) of the model, projected to the width of the teacher.
        teacher_states: (tokens, channels) of the teacher.

    Returns:
        fp32 scalar.
    """
    return (hidden_states.float() - teacher_states.float()).square().mean(dim=1).sum()


def relation_divergence_sum(
    projections: Tensor, teacher_projections: Tensor, num_heads: int, lengths: Sequence[int], num_sequences: int
) -> Tensor:
    """Returns KL(teacher || model) of the relations between tokens of a sequence, summed over real tokens.

    A relation is the softmax of scaled dot products of the queries of a sequence with each other, and likewise of its
    keys and of its values (MiniLMv2, Wang et al. 2021, arXiv:2012.15828, section 3.1). The vectors of all attention
    heads are joined and split into relation heads, so models of any width can be compared. The divergence of a token is
    the mean over relation heads, added over the three relations. The paper weighs sequences alike, and this sum tokens.

    Args:
        projections: (tokens, heads, 3, head_dim) queries, keys and values of the model.
        teacher_projections: (tokens, heads, 3, head_dim) of the teacher, whose heads and head_dim may differ.
        num_heads: Number of relation heads, which divides the width of both models.
        lengths: Lengths of all sequences.
        num_sequences: Number of real sequences, which come first.

    Returns:
        fp32 scalar.
    """
    model, teacher = (_split(each, num_heads) for each in (projections, teacher_projections))
    total = torch.zeros((), device=projections.device)
    groups, _ = group_by_length(lengths, projections.device)
    for group in groups:
        num_real = sum(member < num_sequences for member in group.members)
        if not num_real:
            continue
        log_model, log_teacher = (
            _log_relations(group.take(each)[:, :num_real], group.padding[:num_real]) for each in (model, teacher)
        )
        divergences = (log_teacher.exp() * (log_teacher - log_model)).sum(dim=-1).mean(dim=2).sum(dim=0)
        total = total + divergences.masked_fill(group.padding[:num_real, 0, 0], 0.0).sum()
    return total


def _split(projections: Tensor, num_heads: int) -> Tensor:
    """Splits (tokens, heads, 3, head_dim) into relation heads: (tokens, num_heads, 3, width / num_heads)."""
    return projections.transpose(1, 2).flatten(2).unflatten(2, (num_heads, -1)).transpose(1, 2)


def _log_relations(vectors: Tensor, padding: Tensor) -> Tensor:
    """Returns (3, members, heads, length, length) log-probabilities of (3, members, heads, length, head_dim)."""
    scores = torch.matmul(vectors, vectors.transpose(-1, -2)).float() / math.sqrt(vectors.shape[-1])
    return nn.functional.log_softmax(scores.masked_fill(padding, torch.finfo(torch.float32).min), dim=-1)
