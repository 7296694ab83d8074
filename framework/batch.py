"""What travels from the data engine to the model, and the legend of shapes that every docstring uses.

Legend: `tokens` all tokens of one micro-batch laid end to end, filler included; `sequences` what attention may not
leave (for next-sentence prediction one sequence holds two segments); `targets` the positions that a head predicts;
`hidden` the width of the encoder; `heads` x `head_dim` = hidden; `vocab` the tokenizer's size; `labels` the classes of
a task.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""Target value that no loss counts (the convention of torch.nn.functional.cross_entropy)."""

DUMMY_SEQUENCE_ID = -1
"""Sequence id of the filler sequences that complete a batch of fixed shape."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch, packed: no padding to a rectangle.

    Attributes:
        input_ids: (tokens,) int64.
        position_ids: (tokens,) int64, restarting at 0 in each sequence.
        token_type_ids: (tokens,) int64, the segment of each token.
        cu_seqlens: (sequences + 1,) int32, offsets of the sequences; first 0, last `tokens`.
        sequence_ids: (sequences,) int64, the place of each sequence in the run's stream of sequences
            (DUMMY_SEQUENCE_ID for filler); the identity that dropout and logs use.
        lengths: The same lengths as in cu_seqlens, on the host, so that no layer has to synchronise.
        max_seqlen: Upper bound of the lengths, in tokens; fixed by config where shapes are static.
        num_sequences: Real sequences (they come first).
        num_tokens: Real tokens, those of `decoder_inputs` included.
        targets: What the task predicts, by name; first dim is `targets`, `sequences` or `tokens`, as the task says.
            Index targets count from this micro-batch's first token.
        counts: Targets (or their summed weight) of each loss term in this micro-batch, on the host.
        group_size: Most sequences of an item: what a plan places as one may hold several that do not attend to each
            other (an anchor and its positive, a question with each choice). `sequence_ids // group_size` is then the
            place of the item in the run's stream of items.
        decoder_inputs: What a decoder reads while it looks at this batch: as many sequences, in the same order and with
            the same ids; its `targets` are the decoder's. None where the model has no decoder.
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
    decoder_inputs: "PackedBatch | None" = None

    def item_places(self) -> list[int]:
        """Places of the real items, in their order; waits for the device."""
        ids = self.sequence_ids[: self.num_sequences].tolist()
        return list(dict.fromkeys(sequence_id // self.group_size for sequence_id in ids))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedBatch":
        """Copies the tensors to a device; host fields stay."""
        moved: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        if self.decoder_inputs is not None:
            moved["decoder_inputs"] = self.decoder_inputs.to(device, non_blocking)
        moved["targets"] = {name: value.to(device, non_blocking=non_blocking) for name, value in self.targets.items()}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One rank's share of one global step: what Lightning sees as one batch.

    Attributes:
        step: Optimizer steps that were completed before this one (for evaluation: index of the step in the split).
        epoch: Epoch of the first sequence of the step, counted from 0.
        micro_batches: The same number on every rank; one without real sequences is legal.
    """

    step: int
    epoch: int
    micro_batches: tuple[PackedBatch, ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "StepBatch":
        """Copies every micro-batch to a device."""
        moved = tuple(micro_batch.to(device, non_blocking) for micro_batch in self.micro_batches)
        return replace(self, micro_batches=moved)
