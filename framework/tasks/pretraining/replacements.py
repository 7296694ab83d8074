"""Sequences of replaced-token detection: those of masked words, with a key for the draw of each replacement."""

from dataclasses import replace

import numpy as np
import torch

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.planning.collate import Shape
from framework.data.planning.plan import StepSequences
from framework.random import key, mix
from framework.tasks.pretraining.features import PretrainingSource
from framework.tasks.pretraining.replaced_tokens_head import KEYS, LABELS

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
"""Terms of the loss."""


class ReplacementSource(PretrainingSource):
    """Sequences with masked words, whose replacements are functions of (seed, step, epoch, index, position).

    Step, sequence and position decide the noise of a draw. The draw also depends on the weights of the generator.
    """

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch.

        Its targets are mlm_positions and mlm_labels (targets,) as in `PretrainingSource`, replacement_keys (targets,)
        int64, and replaced_labels (tokens,) int64: 0, and IGNORE_INDEX for filler.
        """
        batch = super().build(sequences, step, shape)
        num_targets = int(batch.counts["mlm"])
        positions = batch.targets["mlm_positions"].numpy()
        step_key = key(self._masks_key, "replacements", 0 if self._is_evaluation else step)
        sequence_keys = mix(mix(step_key, self._effective(sequences.epochs)), sequences.indices)
        ends = batch.cu_seqlens.numpy().astype(np.int64)
        owners = np.searchsorted(ends[1:], positions[:num_targets], side="right")
        keys = np.zeros(len(positions), dtype=np.int64)
        keys[:num_targets] = mix(sequence_keys[owners], positions[:num_targets] - ends[owners]).view(np.int64)
        labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
        labels[: batch.num_tokens] = 0
        return replace(
            batch,
            targets={**batch.targets, KEYS: torch.from_numpy(keys), LABELS: labels},
            counts={GENERATOR: float(num_targets), DISCRIMINATOR: float(batch.num_tokens)},
        )
