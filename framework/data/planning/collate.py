"""Lays sequences end to end into a PackedBatch; where shapes are not free it completes them with dummy sequences.

Everything is NumPy until the last line. Nothing here knows what a target means: it has values, an axis and a filler.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch

from framework.batch import DUMMY_SEQUENCE_ID, IGNORE_INDEX, PackedBatch
from framework.errors import ConfigError

FILLER_TOKEN_ID = 0

_TOKEN_MULTIPLE, _DUMMIES = 16, 4
"""Of every micro-batch with a RoundedShape: what its tokens are a multiple of, and its dummy sequences."""


@dataclass(frozen=True, slots=True)
class Target:
    """One named thing that a task predicts, before it is packed.

    Attributes:
        values: (targets | sequences | tokens, ...) integers or floats.
        axis: What the first dim counts.
        filler: Value of dummy entries: IGNORE_INDEX for labels, 0 for positions.
    """

    values: np.ndarray
    axis: Literal["targets", "sequences", "tokens"]
    filler: int = IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class FixedShape:
    """The fixed sizes of a compiled step, fillers included; real content must leave one token for each dummy sequence.

    Attributes:
        tokens: Tokens of every micro-batch.
        sequences: Sequences of every micro-batch.
        targets: Entries of every target with axis "targets"; None: as many as there are.
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
        """The smallest shape into which every micro-batch within these limits fits, an empty one included.

        A micro-batch of n sequences is completed by `sequences - n` dummies of 1 to `max_seqlen` tokens. So there must
        be a token for each of them beside a full budget, and dummies enough to hold all tokens beside a full row of
        sequences.

        Args:
            micro_batch_tokens: Most real tokens of a micro-batch.
            micro_batch_sequences: Most real sequences of a micro-batch.
            max_targets: Most entries of a target with axis "targets" in a micro-batch; None: their number stays free.
            max_seqlen: Most tokens of one sequence; at least 2.

        Raises:
            ConfigError: `max_seqlen` is below 2.
        """
        if max_seqlen < 2:
            raise ConfigError(
                f"max_seqlen is {max_seqlen}, fixed shapes need sequences of at least 2 tokens; raise it."
            )
        sequences = micro_batch_sequences
        while (sequences - micro_batch_sequences) * max_seqlen < micro_batch_tokens + sequences:
            missing = micro_batch_tokens + sequences - (sequences - micro_batch_sequences) * max_seqlen
            sequences += -(-missing // max_seqlen)
        targets = None if max_targets is None else max(max_targets, 1)
        return cls(micro_batch_tokens + sequences, sequences, targets, max_seqlen)

    def dummy_lengths(self, num_tokens: int, num_sequences: int) -> np.ndarray:
        """Lengths of the dummy sequences after content of this size.

        Raises:
            ValueError: The content does not fit.
        """
        tokens, dummies = self.tokens - num_tokens, self.sequences - num_sequences
        if not 0 <= dummies <= tokens <= dummies * self.max_seqlen:
            raise ValueError(f"{num_sequences} sequences with {num_tokens} tokens cannot be completed to {self}.")
        return _split_evenly(tokens, dummies)


@dataclass(frozen=True, slots=True)
class RoundedShape:
    """Sizes that follow the content, but few different ones: a fixed number of dummies completes the tokens.

    For a CPU, on which oneDNN compiles each product for each number of rows that it has not met: where each step had
    another number, of some 700, an eighth of the time went there (tests/benchmarks/README.md, "Speed of fine-tuning").
    There are several dummies so that none is longer than a table of positions.
    """

    def dummy_lengths(self, num_tokens: int, num_sequences: int) -> np.ndarray:  # noqa: ARG002
        """Lengths of the dummy sequences after content of this size, at most 5 tokens each."""
        return _split_evenly(_DUMMIES + -(num_tokens + _DUMMIES) % _TOKEN_MULTIPLE, _DUMMIES)


Shape: TypeAlias = FixedShape | RoundedShape | None
"""What the content of a micro-batch is completed to; None leaves its shapes free."""


def shape_on(device_type: str) -> RoundedShape | None:
    """What suits micro-batches whose layers are not compiled: few sizes on a CPU, free ones elsewhere."""
    return RoundedShape() if device_type == "cpu" else None


def pack_sequences(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    sequence_ids: np.ndarray,
    token_type_ids: np.ndarray | None = None,
    targets: Mapping[str, Target] | None = None,
    counts: Mapping[str, float] | None = None,
    shape: Shape = None,
) -> PackedBatch:
    """Builds one micro-batch from sequences that already lie end to end.

    Without sequences the batch holds one dummy sequence of one token. Without a shape no other dummy is added,
    except that a target with axis "targets" never has fewer than one entry, so that no head sees a tensor without rows.

    Arrays that need no filler and no other type are shared with the batch, not copied: leave them as they are after.

    Args:
        input_ids: (tokens,) the sequences end to end.
        lengths: (sequences,) tokens of each sequence, all positive; their sum is `tokens`.
        sequence_ids: (sequences,) place of each in the run's stream of sequences.
        token_type_ids: (tokens,) segments; None is segment 0 everywhere.
        targets: What is predicted, by name. Position targets count from the first token of this micro-batch.
        counts: Targets of each loss term; real ones only.
        shape: What the content is completed to; None leaves its shapes free.

    Returns:
        The micro-batch, on the CPU.

    Raises:
        ValueError: The parts do not fit together, or the content does not fit the shape.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    num_tokens, num_sequences = int(lengths.sum()), len(lengths)
    if len(input_ids) != num_tokens or len(sequence_ids) != num_sequences or (num_sequences and lengths.min() < 1):
        raise ValueError(
            f"{len(input_ids)} tokens and {len(sequence_ids)} sequence ids do not belong to {num_sequences} positive "
            f"lengths with sum {num_tokens}."
        )
    all_lengths = np.concatenate([lengths, _dummy_lengths(num_tokens, num_sequences, shape)])
    cu_seqlens = np.zeros(len(all_lengths) + 1, dtype=np.int32)
    np.cumsum(all_lengths, out=cu_seqlens[1:])
    tokens = int(cu_seqlens[-1])
    position_ids = np.arange(tokens, dtype=np.int64)
    position_ids -= np.repeat(cu_seqlens[:-1], all_lengths)
    segments = np.zeros(0, dtype=np.int64) if token_type_ids is None else token_type_ids
    fixed = shape if isinstance(shape, FixedShape) else None
    sizes = {"tokens": tokens, "sequences": len(all_lengths), "targets": fixed.targets if fixed else None}
    return PackedBatch(
        input_ids=_filled(input_ids, tokens, FILLER_TOKEN_ID),
        position_ids=torch.from_numpy(position_ids),
        token_type_ids=_filled(segments, tokens, 0),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        sequence_ids=_filled(sequence_ids, len(all_lengths), DUMMY_SEQUENCE_ID),
        lengths=tuple(all_lengths.tolist()),
        max_seqlen=fixed.max_seqlen if fixed else int(all_lengths.max()),
        num_sequences=num_sequences,
        num_tokens=num_tokens,
        targets={name: _filled_target(name, target, sizes[target.axis]) for name, target in (targets or {}).items()},
        counts=dict(counts or {}),
    )


def _dummy_lengths(num_tokens: int, num_sequences: int, shape: Shape) -> np.ndarray:
    if shape is None:
        return np.ones(0 if num_sequences else 1, dtype=np.int64)
    return shape.dummy_lengths(num_tokens, num_sequences)


def _split_evenly(tokens: int, parts: int) -> np.ndarray:
    if parts == 0:
        return np.zeros(0, dtype=np.int64)
    return tokens // parts + (np.arange(parts) < tokens % parts)


def _filled_target(name: str, target: Target, size: int | None) -> torch.Tensor:
    size = max(len(target.values), 1) if size is None else size
    if len(target.values) > size:
        raise ValueError(f"target {name} has {len(target.values)} entries, but the shape allows {size}.")
    return _filled(target.values, size, target.filler)


def _filled(values: np.ndarray, size: int, filler: int) -> torch.Tensor:
    """The values followed by fillers up to `size` rows; integers become int64, floats float32."""
    values = np.asarray(values)
    dtype = np.dtype(np.float32 if values.dtype.kind == "f" else np.int64)
    if len(values) == size and values.dtype == dtype and values.flags.carray:
        return torch.from_numpy(values)
    result = np.empty((size, *values.shape[1:]), dtype=dtype)
    result[: len(values)] = values
    result[len(values) :] = filler
    return torch.from_numpy(result)
