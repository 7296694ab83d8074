"""Token embeddings: words, optionally learned positions and segments, followed by norm and dropout."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from framework.batch import PackedBatch
from framework.nn.dropout import HashedDropout


class _RowLookup(torch.autograd.Function):
    """Lookup whose gradient is sparse: one row for each id, in order. Each row has the same sum as a dense gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table_shape = table.shape
        return table.index_select(0, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        rows, inverse = torch.unique(ids, return_inverse=True)
        # Not `Tensor.coalesce`, which adds the gradients of a row in another order than a dense gradient does.
        values = grad.new_zeros(len(rows), grad.shape[1]).index_add_(0, inverse, grad)
        gradient = torch.sparse_coo_tensor(
            rows[None], values, ctx.table_shape, check_invariants=False, is_coalesced=True
        )
        return gradient, None


def _lookup(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    return _RowLookup.apply(embedding.weight, ids) if embedding.sparse else embedding(ids)


class EmbeddingTable(nn.Embedding):
    """Embedding that is not initialized on the meta device, where weights have no values.

    torch would run Python code for it that imports the compiler, which takes more than a second.
    """

    @override
    def reset_parameters(self) -> None:
        """Initializes weights that have values."""
        if not self.weight.is_meta:
            super().reset_parameters()


class TokenEmbeddings(nn.Module):
    """Sum of the embeddings of word, position and segment (Devlin et al. 2019, section 3, "Input/Output").

    Args:
        vocab_size: Rows of the word table.
        hidden_size: Width of the tables.
        num_positions: Rows of the position table; 0: no table.
        position_offset: Row of position 0.
        type_vocab_size: Rows of the segment table; 0: no table. With one row, every token uses it.
        norm: Norm of the sum; the identity for encoders that add up embeddings without one.
        dropout: Dropout after the norm.
        patch_embeddings: Module that replaces the embeddings of tokens that stand for picture patches, before the norm
            (`framework.nn.patch_embeddings`); None: the encoder reads no pictures.
        projection: Linear layer from the width of the tables to that of the encoder (ELECTRA); None: they are equal.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_positions: int,
        position_offset: int,
        type_vocab_size: int,
        norm: nn.Module,
        dropout: HashedDropout,
        patch_embeddings: nn.Module | None = None,
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.position_offset = position_offset
        self.word_embeddings = EmbeddingTable(vocab_size, hidden_size)
        self.position_embeddings = EmbeddingTable(num_positions, hidden_size) if num_positions else None
        self.token_type_embeddings = EmbeddingTable(type_vocab_size, hidden_size) if type_vocab_size else None
        self.patch_embeddings = patch_embeddings
        self.norm = norm
        self.dropout = dropout
        self.projection = projection

    def forward(self, batch: PackedBatch, dropout_keys: Tensor | None = None) -> Tensor:
        """Maps a packed batch to (tokens, hidden) fp32."""
        embeddings = self.look_up(batch, dropout_keys)
        return embeddings if self.projection is None else self.projection(embeddings).float()

    def look_up(self, batch: PackedBatch, dropout_keys: Tensor | None = None) -> Tensor:
        """Maps a packed batch to embeddings before the projection: (tokens, width of the tables) fp32."""
        embeddings = _lookup(self.word_embeddings, batch.input_ids)
        if self.token_type_embeddings is not None:
            type_ids = batch.token_type_ids
            if self.token_type_embeddings.num_embeddings == 1:
                type_ids = type_ids.new_zeros(1)
            embeddings = embeddings + _lookup(self.token_type_embeddings, type_ids)
        if self.position_embeddings is not None:
            position_ids = batch.position_ids + self.position_offset
            embeddings = embeddings + _lookup(self.position_embeddings, position_ids)
        if self.patch_embeddings is not None:
            embeddings = self.patch_embeddings(embeddings, batch)
        return self.dropout(self.norm(embeddings), dropout_keys)
