"""Vocabulary parallelism: word embeddings, the decoder that shares their weight, and the loss, split by words.

Logits stay sharded: in training no rank holds the logits of all words (Shoeybi et al. 2019, "Megatron-LM", section 3).
Unlike in Megatron-LM, the loss needs one small collective: ranks exchange the log-sum-exp of their parts.
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


def local_part(tensor: Tensor) -> Tensor:
    """Returns this rank's part of a sharded weight. The gradient of the part flows to the weight."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def _own_rows(ids: Tensor, num_words: int, mesh: DeviceMesh) -> tuple[Tensor, Tensor]:
    """Computes the rows of words in this rank's part of the vocabulary.

    The vocabulary is split as `torch.chunk` does: all parts are equal except the last.

    Args:
        ids: Word ids, int64. An id below 0 belongs to no part.
        num_words: Size of the whole vocabulary.
        mesh: Mesh axis over which the vocabulary is split.

    Returns:
        Rows within the part, 0 for words of other ranks, and a mask that is True for words of this rank.
    """
    size = -(-num_words // mesh.size())
    rows = ids - mesh.get_local_rank() * size
    own = (rows >= 0) & (rows < size)
    return rows.where(own, 0), own


class VocabularyParallelEmbedding(nn.Embedding):
    """Word embedding split by rows. An all-reduce combines the ranks exactly, because all ranks but one add zero."""

    def forward(self, ids: Tensor) -> Tensor:
        """Maps (tokens,) to (tokens, hidden) fp32. Collective: all ranks of the axis must call."""
        assert isinstance(self.weight, DTensor)
        mesh = self.weight.device_mesh
        rows, own = _own_rows(ids, self.num_embeddings, mesh)
        embeddings = functional.embedding(rows, local_part(self.weight)) * own[:, None]
        return sum_of_parts(embeddings, mesh.get_group().group_name)


class VocabularyParallelDecoder(nn.Module):
    """Decoder tied to the word embeddings: each rank computes the logits of its own words."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (targets, hidden) to logits (targets, vocab), a DTensor whose columns are sharded over the ranks."""
        assert isinstance(self.weight, DTensor)
        mesh, num_words = self.weight.device_mesh, self.weight.shape[0]
        x = share_input(x, mesh.get_group().group_name)
        logits = functional.linear(x, local_part(self.weight), None if self.bias is None else local_part(self.bias))
        shape = torch.Size((x.shape[0], num_words))
        return DTensor.from_local(logits, mesh, [Shard(1)], run_check=False, shape=shape, stride=(num_words, 1))


class _VocabularyParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, num_words: int, mesh: DeviceMesh) -> tuple[Tensor, Tensor]:
        columns, own = _own_rows(labels, num_words, mesh)
        label_logits = logits.gather(1, columns[:, None])[:, 0].float() * own
        parts = gather_parts(
            torch.stack([log_normalizers(logits), label_logits]), mesh.size(), mesh.get_group().group_name
        )
        normalizers, label_logits = parts[:, 0].logsumexp(dim=0), parts[:, 1].sum(dim=0)
        ctx.save_for_backward(logits, labels, columns, own, normalizers)
        return torch.where(labels != IGNORE_INDEX, normalizers - label_logits, 0.0).sum(), normalizers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, normalizer_grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels, columns, own, normalizers = ctx.saved_tensors
        weights = torch.where(labels != IGNORE_INDEX, grad.float(), 0.0)
        gradient = logit_gradient(logits, normalizers, weights + normalizer_grads, columns, weights * own)
        return gradient, None, None, None


@cross_entropy_and_normalizers.register
def _(logits: DTensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the loss of sharded logits, equal on all ranks. Collective: all ranks of the axis must call."""
    return _VocabularyParallelCrossEntropy.apply(logits.to_local(), labels, logits.shape[1], logits.device_mesh)
