"""The vocabulary in parts: word embeddings, the decoder that shares them, and the loss, each rank with its own words.

Logits stay in parts: in training no rank holds those of all words (Shoeybi et al. 2019, "Megatron-LM", section 3).
Unlike there, the loss takes one small collective: ranks exchange the log-sum-exp of their parts.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional

from framework.batch import IGNORE_INDEX
from framework.distributed.parallel.tensor_collectives import gather_parts, share_input, sum_of_parts
from framework.nn.cross_entropy import cross_entropy_and_normalizers, log_normalizers, logit_gradient


def part_of(tensor: Tensor) -> Tensor:
    """This rank's part of a weight that is sharded; its gradient is a part of the weight's."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def _own_rows(ids: Tensor, num_words: int, mesh: DeviceMesh) -> tuple[Tensor, Tensor]:
    """Finds words in this rank's part of the vocabulary (`torch.chunk`'s rule: all parts are equal but the last).

    Args:
        ids: int64; an id below 0 is in no part.
        num_words: Of the whole vocabulary.
        mesh: The axis over which it is spread.

    Returns:
        Rows within the part, 0 for a word of another rank; and which words are this rank's own.
    """
    size = -(-num_words // mesh.size())
    rows = ids - mesh.get_local_rank() * size
    own = (rows >= 0) & (rows < size)
    return rows.where(own, 0), own


class VocabularyParallelEmbedding(nn.Embedding):
    """Looks up the words of its own rows; the others' come by an all-reduce, exactly, since all but one add zero."""

    def forward(self, ids: Tensor) -> Tensor:
        """Maps (tokens,) to (tokens, hidden) fp32. Collective: all ranks of the axis must call."""
        assert isinstance(self.weight, DTensor)
        mesh = self.weight.device_mesh
        rows, own = _own_rows(ids, self.num_embeddings, mesh)
        found = functional.embedding(rows, part_of(self.weight)) * own[:, None]
        return sum_of_parts(found, mesh.get_group().group_name)


class VocabularyParallelDecoder(nn.Module):
    """Scores its own rows of the word embeddings; becomes the class of a decoder that is tied to them."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (targets, hidden) to logits (targets, vocab), a DTensor of which each rank holds its columns."""
        assert isinstance(self.weight, DTensor)
        mesh, num_words = self.weight.device_mesh, self.weight.shape[0]
        x = share_input(x, mesh.get_group().group_name)
        logits = functional.linear(x, part_of(self.weight), None if self.bias is None else part_of(self.bias))
        shape = torch.Size((x.shape[0], num_words))
        return DTensor.from_local(logits, mesh, [Shard(1)], run_check=False, shape=shape, stride=(num_words, 1))


class _VocabularyParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, num_words: int, mesh: DeviceMesh) -> tuple[Tensor, Tensor]:
        columns, own = _own_rows(labels, num_words, mesh)
        picked = logits.gather(1, columns[:, None])[:, 0].float() * own
        parts = gather_parts(torch.stack([log_normalizers(logits), picked]), mesh.size(), mesh.get_group().group_name)
        normalizers, picked = parts[:, 0].logsumexp(dim=0), parts[:, 1].sum(dim=0)
        ctx.save_for_backward(logits, labels, columns, own, normalizers)
        return torch.where(labels != IGNORE_INDEX, normalizers - picked, 0.0).sum(), normalizers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, normalizer_grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels, columns, own, normalizers = ctx.saved_tensors
        weights = torch.where(labels != IGNORE_INDEX, grad.float(), 0.0)
        gradient = logit_gradient(logits, normalizers, weights + normalizer_grads, columns, weights * own)
        return gradient, None, None, None


@cross_entropy_and_normalizers.register
def _(logits: DTensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits in parts, equal on all ranks. Collective: all ranks of the axis must call."""
    return _VocabularyParallelCrossEntropy.apply(logits.to_local(), labels, logits.shape[1], logits.device_mesh)
