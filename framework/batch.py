"""The packed batch that the data engine passes to the model, and the legend of shapes for all docstrings.

Legend: `tokens` is the number of tokens of a micro-batch, filler included. `sequences` is the number of sequences;
tokens attend only within their sequence (with next-sentence prediction one sequence has two segments). `targets` is the
number of positions that a head predicts. `hidden` is the width of the encoder, `heads` x `head_dim` = hidden. `vocab`
is the size of the tokenizer, and `labels` the number of classes of a task.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Target value that losses ignore (the convention of torch.nn.functional.cross_entropy)."""

DUMMY_SEQUENCE_ID = -1
"""Sequence id of the filler sequences that complete a batch of fixed shape."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch of packed sequences, without padding to a rectangle.

    Attributes:
        input_ids: (tokens,) int64.
        position_ids: (tokens,) int64, restarting at 0 in each sequence.
        token_type_ids: (tokens,) int64, the segment of each token.
        cu_seqlens: (sequences + 1,) int32, offsets of the sequences; first 0, last `tokens`.
        sequence_ids: (sequences,) int64, index of each sequence in the run's stream of sequences, DUMMY_SEQUENCE_ID for
            filler. Dropout and logs identify sequences by it.
        lengths: Lengths as in cu_seqlens, on the host, so that layers do not synchronise.
        max_seqlen: Upper bound of the lengths in tokens, set by the config for static shapes.
        num_sequences: Number of real sequences, which come first.
        num_tokens: Number of real tokens, including those of `decoder_inputs`.
        targets: Prediction targets by name. The task decides if the first dim is `targets`, `sequences` or `tokens`.
            Index targets count from the first token of this micro-batch.
        counts: Number (or summed weight) of the targets of each loss term in this micro-batch, on the host.
        group_size: Maximum number of sequences of an item. A plan may place several sequences as one item, such as an
            anchor and its positive, or a question with each choice. Then `sequence_ids // group_size` is the index of
            the item in the run's stream of items.
        unit_size: Maximum number of items of a privacy unit, such as all rows of a user. Then `unit_ids` are the
            indices of the units in the run's stream of units.
        decoder_inputs: Batch of the decoder: the same number of sequences, order and ids. Its `targets` are those of
            the decoder. None if the model has no decoder.
        patches: (patches, patch_dim) uint8, pixels of picture patches in the order row, column, channel. None: the
            source has no pictures.
        patch_tokens: (patches,) int64, index of the token that each patch replaces. Filler patches come last. They
            replace the last token, which is then a filler too.
        patch_places: (patches, 2) int64, row and column of each patch in the grid of its picture.
        patch_is_masked: (patches,) bool, True for patches whose pixels are hidden. Their tokens keep the embedding of
            their word, and get the position of the patch. None: no patch is hidden.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    cu_seqlens: Tensor
    sequence_ids: Tensor
    lengths: tuple[int, ...]
    max_seqlen: int
    num_sequences: int
    num_tokens: int
    targets: Mapping[str, Tensor]
    counts: Mapping[str, float]
    group_size: int = 1
    unit_size: int = 1
    decoder_inputs: "PackedBatch | None" = None
    patches: Tensor | None = None
    patch_tokens: Tensor | None = None
    patch_places: Tensor | None = None
    patch_is_masked: Tensor | None = None

    @property
    def unit_ids(self) -> Tensor:
        """Returns (sequences,) index of the privacy unit of each sequence, DUMMY_SEQUENCE_ID for filler."""
        return self.sequence_ids.div(self.group_size * self.unit_size, rounding_mode="floor")

    def item_indices(self) -> list[int]:
        """Returns the indices of the real items in order. Synchronises with the device."""
        ids = self.sequence_ids[: self.num_sequences].tolist()
        return list(dict.fromkeys(sequence_id // self.group_size for sequence_id in ids))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """Copies the tensors to a device. Host fields stay on the host.

        A copy to CUDA that must not block passes through pinned memory. From pageable memory CUDA would start it only
        after all earlier kernels, and the host would wait for them.
        """
        is_pinned = non_blocking and torch.device(device).type == "cuda" and not self.input_ids.is_cuda

        def copied(tensor: Tensor) -> Tensor:
            return (tensor.pin_memory() if is_pinned else tensor).to(device, non_blocking=non_blocking)

        moved: dict[str, Any] = {
            field.name: copied(getattr(self, field.name))
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        if self.decoder_inputs is not None:
            moved["decoder_inputs"] = self.decoder_inputs.to(device, non_blocking)
        moved["targets"] = {name: copied(value) for name, value in self.targets.items()}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One rank's share of a global step, which is one batch for Lightning.

    Attributes:
        step: Number of optimizer steps completed before this one; in evaluation the index of the step in the split.
        epoch: Epoch of the first sequence of the step, counted from 0.
        micro_batches: Micro-batches, the same number on every rank. One without real sequences is legal.
    """

    step: int
    epoch: int
    micro_batches: tuple[PackedBatch, ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "StepBatch":
        """Copies all micro-batches to a device."""
        moved = tuple(micro_batch.to(device, non_blocking) for micro_batch in self.micro_batches)
        return replace(self, micro_batches=moved)
