"""Gradients of embeddings that hold only the rows of a step, and the dense memory that optimizers read them from.

A dense gradient costs a pass over the table to clear it, one for its norm and two to clip it, although a step uses a
few hundred of 30,522 words (tests/benchmarks/README.md, "Speed of fine-tuning").
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from framework.optim.shards import local


def stored(gradient: Tensor) -> Tensor:
    """Returns the elements of a gradient that this rank holds, sharing memory: the rows of a sparse one."""
    return gradient._values() if gradient.is_sparse else local(gradient)


def row_norms(gradient: Tensor) -> Tensor:
    """Returns the 2-norm of each row of a local gradient, flat. A coalesced sparse gradient also has its zero rows."""
    norms = torch.linalg.vector_norm(stored(gradient), dim=-1)
    if gradient.is_sparse:
        norms = norms.new_zeros(len(gradient)).index_copy_(0, gradient.indices()[0], norms)
    return norms.flatten()


class DenseGradients:
    """Dense forms of sparse gradients. Their memory lives on between steps and is zero outside of `dense`."""

    def __init__(self) -> None:
        self._tables: dict[Tensor, Tensor] = {}

    @contextmanager
    def dense(self, parameters: Iterable[Tensor]) -> Iterator[None]:
        """Context in which sparse gradients of some parameters are dense."""
        replaced = []
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is not None and gradient.is_sparse:
                gradient = gradient.coalesce()
                if parameter not in self._tables:
                    self._tables[parameter] = torch.zeros_like(parameter, requires_grad=False)
                rows = gradient.indices()[0]
                parameter.grad = self._tables[parameter].index_copy_(0, rows, gradient.values())
                replaced.append((parameter, gradient, rows))
        yield
        for parameter, gradient, rows in replaced:
            self._tables[parameter].index_fill_(0, rows, 0.0)
            parameter.grad = gradient
