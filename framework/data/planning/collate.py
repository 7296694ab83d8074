"""Concatenates sequences into a PackedBatch and pads it with dummy sequences to a fixed or a rounded shape.

All arrays are NumPy until the batch is built. A target is only values, an axis and a filler here; tasks give it a
meaning.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch

from framework.batch import DUMMY_SEQUENCE_ID, IGNORE_INDEX, PackedBatch
from framework.errors import ConfigError

FILLER_TOKEN_ID = 0

_TOKEN_MULTIPLE, _DUMMIES = 16, 4
"""Micro-batches with a RoundedShape: their number of tokens is a multiple of 16, with 4 dummy sequences."""


@dataclass(frozen=True, slots=True)
class Target:
    """Prediction target of a task, before it is packed.

    Attributes:
        values: (targets | sequences | tokens, ...) integers or floats.
        axis: Unit of the first dim.
        filler: Value of dummy entries: IGNORE_INDEX for labels, 0 for positions.
    """

    values: np.ndarray
    axis: Literal["targets", "sequences", "tokens"]
    filler: int = IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Patches:
    """Patches of the pictures of a micro-batch, before they are packed.

    Attributes:
        values: (patches, patch_dim) uint8 pixels.
        tokens: (patches,) int64, index in the micro-batch of the token that each patch replaces.
        places: (patches, 2) int64, row and column of each patch in its picture.
    """

    values: np.ndarray
    tokens: np.ndarray
    places: np.ndarray


@dataclass(frozen=True, slots=True)
class FixedShape:
    """Fixed sizes of a micro-batch of a compiled step, fillers included. Each dummy sequence takes at least one token.

    Attributes:
        tokens: Tokens of every micro-batch.
        sequences: Sequences of every micro-batch.
        targets: Entries of every target with axis "targets"; None does not pad them. More of them are padded to the
            next multiple of an eighth of this number, which is another shape.
        max_seqlen: `PackedBatch.max_seqlen` of every micro-batch; no dummy sequence is longer.
    """

    tokens: int
    sequences: int
    targets: int | None
    max_seqlen: int

    @classmethod
    def around(
        cls, micro_batch_tokens: int, micro_batch_sequences: int, max_targets: int | None, max_seqlen: int
    ) -> "FixedShape":
        """Returns the smallest shape that fits every micro-batch within these limits, an empty one included.

        A micro-batch of n sequences is padded with `sequences - n` dummies of 1 to `max_seqlen` tokens. If the token
        budget is full, the shape must leave one token for each dummy. If the number of sequences is at its maximum,
        the remaining dummies must be able to hold all remaining tokens.

        Args:
            micro_batch_tokens: Most real tokens of a micro-batch.
            micro_batch_sequences: Most real sequences of a micro-batch.
            max_targets: Most entries of a target with axis "targets" in a micro-batch; None does not pad them.
            max_seqlen: Most tokens of one sequence; at least 2.

        Raises:
            ConfigError: `max_seqlen` is below 2.
        """
        if max_seqlen < 2:
            raise ConfigError(
                f"max_seqlen is {max_seqlen}. Fixed shapes require sequences of at least 2 tokens. Raise it."
            )
        sequences = micro_batch_sequences
        while (sequences - micro_batch_sequences) * max_seqlen < micro_batch_tokens + sequences:
            missing = micro_batch_tokens + sequences - (sequences - micro_batch_sequences) * max_seqlen
            sequences += -(-missing // max_seqlen)
        targets = None if max_targets is None else max(max_targets, 1)
        return cls(micro_batch_tokens + sequences, sequences, targets, max_seqlen)

    def dummy_lengths(self, num_tokens: int, num_sequences: int) -> np.ndarray:
        """Returns the lengths of the dummy sequences that pad content of this size.

        Raises:
            ValueError: The content does not fit.
        """
        tokens, dummies = self.tokens - num_tokens, self.sequences - num_sequences
        if not 0 <= dummies <= tokens <= dummies * self.max_seqlen:
            raise ValueError(f"{num_sequences} sequences with {num_tokens} tokens cannot be padded to {self}.")
        return _split_evenly(tokens, dummies)


@dataclass(frozen=True, slots=True)
class RoundedShape:
    """Shape that rounds the number of tokens up to a multiple of 16 with a fixed number of dummy sequences.

    It serves micro-batches on a CPU. oneDNN compiles each matrix product for every new number of rows. With about 700
    different numbers, this compilation took an eighth of the training time (tests/benchmarks/README.md, "Speed of
    fine-tuning"). The padding is split over several dummies so that none exceeds a table of positions.
    """

    def dummy_lengths(self, num_tokens: int, num_sequences: int) -> np.ndarray:  # noqa: ARG002
        """Returns the lengths of the dummy sequences that pad content of this size, at most 5 tokens each."""
        return _split_evenly(_DUMMIES + -(num_tokens + _DUMMIES) % _TOKEN_MULTIPLE, _DUMMIES)


Shape: TypeAlias = FixedShape | RoundedShape | None
"""Shape to which a micro-batch is padded; None adds no padding."""


def shape_on(device_type: str) -> RoundedShape | None:
    """Returns the shape for micro-batches whose layers are not compiled: rounded on a CPU, none elsewhere."""
    return RoundedShape() if device_type == "cpu" else None


def pack_sequences(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    sequence_ids: np.ndarray,
    token_type_ids: np.ndarray | None = None,
    targets: Mapping[str, Target] | None = None,
    counts: Mapping[str, float] | None = None,
    shape: Shape = None,
    patches: Patches | None = None,
) -> PackedBatch:
    """Builds one micro-batch from concatenated sequences.

    Without sequences the batch holds one dummy sequence of one token. Without a shape it holds no other dummies,
    except that a target with axis "targets" never has fewer than one entry, so that no head sees a tensor without rows.

    The batch shares the memory of arrays that need no filler and no conversion. Do not change them afterwards.

    Args:
        input_ids: (tokens,) ids of the concatenated sequences.
        lengths: (sequences,) tokens of each sequence, all positive; their sum is `tokens`.
        sequence_ids: (sequences,) position of each sequence in the run's stream of sequences.
        token_type_ids: (tokens,) segments; None means segment 0 everywhere.
        targets: Prediction targets by name. Position targets count from the first token of this micro-batch.
        counts: Number of real targets of each loss term.
        shape: Shape to which the micro-batch is padded; None adds no padding. Patches are padded to the tokens of a
            fixed shape, or to a multiple of 16 with a rounded one.
        patches: Patches of pictures; None: the source has no pictures.

    Returns:
        The micro-batch, on the CPU.

    Raises:
        ValueError: The arguments are inconsistent, or the content does not fit the shape.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    num_tokens, num_sequences = int(lengths.sum()), len(lengths)
    _check_lengths(lengths, len(input_ids), len(sequence_ids))
    all_lengths = np.concatenate([lengths, _dummy_lengths(num_tokens, num_sequences, shape)])
    cu_seqlens = np.zeros(len(all_lengths) + 1, dtype=np.int32)
    np.cumsum(all_lengths, out=cu_seqlens[1:])
    tokens = int(cu_seqlens[-1])
    position_ids = np.arange(tokens, dtype=np.int64)
    position_ids -= np.repeat(cu_seqlens[:-1], all_lengths)
    segments = np.zeros(0, dtype=np.int64) if token_type_ids is None else token_type_ids
    fixed = shape if isinstance(shape, FixedShape) else None
    sizes = {"tokens": tokens, "sequences": len(all_lengths), "targets": fixed.targets if fixed else None}
    batch = PackedBatch(
        input_ids=_padded(input_ids, tokens, FILLER_TOKEN_ID),
        position_ids=torch.from_numpy(position_ids),
        token_type_ids=_padded(segments, tokens, 0),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        sequence_ids=_padded(sequence_ids, len(all_lengths), DUMMY_SEQUENCE_ID),
        lengths=tuple(all_lengths.tolist()),
        max_seqlen=fixed.max_seqlen if fixed else int(all_lengths.max()),
        num_sequences=num_sequences,
        num_tokens=num_tokens,
        targets={name: _padded_target(name, target, sizes[target.axis]) for name, target in (targets or {}).items()},
        counts=dict(counts or {}),
    )
    return batch if patches is None else _with_patches(batch, patches, shape)


def _check_lengths(lengths: np.ndarray, num_ids: int, num_sequence_ids: int) -> None:
    if num_ids != lengths.sum() or num_sequence_ids != len(lengths) or (len(lengths) and lengths.min() < 1):
        raise ValueError(
            f"{num_ids} tokens and {num_sequence_ids} sequence ids do not match {len(lengths)} lengths with sum "
            f"{lengths.sum()}. All lengths must be positive."
        )


def _with_patches(batch: PackedBatch, patches: Patches, shape: Shape) -> PackedBatch:
    """Adds patches to a batch. Filler patches replace the last token, a dummy of each shape that needs them."""
    tokens, size = len(batch.input_ids), len(patches.values)
    if isinstance(shape, FixedShape):
        size = tokens
    elif shape is not None:
        size = -(-size // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE
    fillers = size - len(patches.values)
    return replace(
        batch,
        patches=torch.from_numpy(np.pad(patches.values, ((0, fillers), (0, 0)))),
        patch_tokens=torch.from_numpy(np.pad(patches.tokens, (0, fillers), constant_values=tokens - 1)),
        patch_places=torch.from_numpy(np.pad(patches.places, ((0, fillers), (0, 0)))),
    )


def _dummy_lengths(num_tokens: int, num_sequences: int, shape: Shape) -> np.ndarray:
    if shape is None:
        return np.ones(0 if num_sequences else 1, dtype=np.int64)
    return shape.dummy_lengths(num_tokens, num_sequences)


def _split_evenly(tokens: int, parts: int) -> np.ndarray:
    if parts == 0:
        return np.zeros(0, dtype=np.int64)
    return tokens // parts + (np.arange(parts) < tokens % parts)


def _padded_target(name: str, target: Target, size: int | None) -> torch.Tensor:
    size = max(len(target.values), 1) if size is None else size
    if target.axis == "targets" and len(target.values) > size:
        eighth = -(-size // 8)
        size = -(-len(target.values) // eighth) * eighth
    if len(target.values) > size:
        raise ValueError(f"target {name} has {len(target.values)} entries, but the shape allows {size}.")
    return _padded(target.values, size, target.filler)


def _padded(values: np.ndarray, size: int, filler: int) -> torch.Tensor:
    """Pads the values with fillers to `size` rows; integers become int64, floats float32."""
    values = np.asarray(values)
    dtype = np.dtype(np.float32 if values.dtype.kind == "f" else np.int64)
    if len(values) == size and values.dtype == dtype and values.flags.carray:
        return torch.from_numpy(values)
    result = np.empty((size, *values.shape[1:]), dtype=dtype)
    result[: len(values)] = values
    result[len(values) :] = filler
    return torch.from_numpy(result)
