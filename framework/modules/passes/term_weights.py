"""Weights of loss terms that follow the losses of the terms: Group DRO."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from framework.tasks.task import Task


class TermWeights:
    """Weights that move to the terms with the largest losses (Sagawa et al. 2020, arXiv:1911.08731, algorithm 1).

    After a step, each weight is multiplied by exp(step_size x loss of its term), and all weights are scaled to the sum
    of the initial ones. The paper updates the weights with the losses of a batch before it trains on this batch, which
    would need all losses of a step before its first backward pass. Here a step is weighted by the losses of the steps
    before it.

    The losses are those of the global step, so the weights do not depend on ranks and micro-batches. They depend on all
    earlier steps, so checkpoints contain them.

    Args:
        initial: Weight of each term before the first step, all positive; the names and order of the task's terms.
        step_size: Factor of the losses in the exponent.

    Attributes:
        terms: Names of the terms.
    """

    def __init__(self, initial: Mapping[str, float], step_size: float) -> None:
        self.terms = tuple(initial)
        self._step_size = step_size
        self._initial = torch.tensor(list(initial.values()), dtype=torch.float64)
        self._logits = self._initial.log()

    @property
    def values(self) -> Tensor:
        """Returns (terms,) float64, the current weights."""
        return self._logits.softmax(dim=0) * self._initial.sum()

    def weighted(self, counts: Tensor) -> Tensor:
        """Divides counts by the weights relative to the initial ones; an objective then has the current weights.

        Args:
            counts: (terms,) float64 counts of a step over all ranks.
        """
        self._initial, self._logits = self._initial.to(counts.device), self._logits.to(counts.device)
        return counts * self._initial / self.values

    def loss(self, values: Mapping[str, Tensor]) -> Tensor:
        """Returns the float64 sum of the losses of the terms, each times its current weight.

        Args:
            values: `TERM_loss` of each term over all ranks, as SumCountObjective names it.
        """
        return (self._losses(values) * self.values).sum()

    def update(self, values: Mapping[str, Tensor], grad_norm: Tensor) -> None:
        """Updates the weights after a step, without waiting for the device.

        Args:
            values: `loss` and `TERM_loss` of each term. A term without targets in the step has the loss 0.
            grad_norm: Gradient norm of the step. The weights stay as they are if it or the loss is not finite, because
                the update of the model is not applied either.
        """
        logits = self._logits + self._step_size * self._losses(values)
        logits = logits - logits.max()
        is_finite = torch.isfinite(values["loss"]) & torch.isfinite(grad_norm)
        self._logits = torch.where(is_finite.to(logits.device), logits, self._logits)

    def metrics(self) -> dict[str, Tensor]:
        """Returns the weights by metric key."""
        return {f"train/{term}_weight": weight for term, weight in zip(self.terms, self.values.unbind(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for a resumed run, as values that JSON stores exactly. Waits for the device."""
        return {"terms": list(self.terms), "logits": self._logits.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state from `state_dict`."""
        by_term = dict(zip(state["terms"], state["logits"], strict=True))
        logits = [by_term[term] for term in self.terms]
        self._logits = torch.tensor(logits, dtype=torch.float64, device=self._logits.device)

    def _losses(self, values: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([values[f"{term}_loss"] for term in self.terms])


def term_weights_of(task: Task) -> TermWeights | None:
    """Returns the weights of a task's terms; None if they are constant."""
    return None if task.weight_step_size is None else TermWeights(task.loss_weights, task.weight_step_size)
