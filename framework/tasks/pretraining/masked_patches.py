"""Pre-training on pictures without texts or labels: the pixels of masked patches are predicted.

The targets are those of MAE (He et al. 2021, arXiv:2111.06377, section 3, "Reconstruction target"). As in SimMIM (Xie
et al. 2021, arXiv:2111.09886, section 3), masked patches stay in the sequence with a learned embedding, here that of
[MASK], and one linear layer predicts the pixels.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from framework import ragged
from framework.batch import PackedBatch
from framework.data.examples.pictures import PictureFiles
from framework.data.facts import with_facts
from framework.data.flat_source import DerivedSource, FlatSource
from framework.data.masking import choose_units, num_masked
from framework.data.picture_sequences import PictureSequences
from framework.data.planning.collate import Shape
from framework.data.planning.plan import SequenceSource, StepSequences
from framework.data.reading.images import PatchGrid
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, check_at_least
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.patch_embeddings import HALF_RANGE
from framework.random import key, mix
from framework.tasks.pretraining.features import EVALUATION_SEED
from framework.tasks.sequence_classification.picture_features import lay_out_pictures
from framework.tasks.sequence_classification.pictures import MAX_SIDE
from framework.tasks.task import Task

LOSS_TERM = "pixels"
_VARIANCE_EPS = 1e-6


class MaskedPatchSource(DerivedSource):
    """Pictures with masked patches: pure functions of (seed, epoch, index).

    Args:
        source: Pictures, each in a sequence of its own.
        pictures: The same pictures, with their numbers of patches.
        rate: Share of the patches of a picture that is masked, an exact number of each.
        mask_id: Id of the token of a masked patch.
        seed: Seed of the run; None for evaluation, whose masks are the same in every run and epoch.
    """

    def __init__(
        self, source: FlatSource, pictures: PictureSequences, rate: float, mask_id: int, seed: int | None
    ) -> None:
        super().__init__(source)
        self._num_patches = pictures.num_patches
        self._rate = rate
        self._mask_id = mask_id
        self._is_evaluation = seed is None
        self._key = key(EVALUATION_SEED if seed is None else seed, "masked patches")

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns (sequences,) int64, the number of tokens of each sequence."""
        return self.source.lengths(epochs, indices)

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch. Its target `pixels` (patches, patch_dim) uint8 holds the pixels of all patches."""
        batch = self.source.build(sequences, step, shape)
        assert batch.patches is not None and batch.patch_tokens is not None
        epochs = np.zeros_like(sequences.epochs) if self._is_evaluation else sequences.epochs
        keys = mix(mix(self._key, epochs), sequences.indices)
        chosen = choose_units(None, ragged.bounds(self._num_patches[sequences.indices]), keys, self._rate)
        is_masked = torch.zeros(len(batch.patches), dtype=torch.bool)
        is_masked[torch.from_numpy(chosen)] = True
        return replace(
            batch,
            input_ids=batch.input_ids.index_fill(0, batch.patch_tokens[is_masked], self._mask_id),
            patches=batch.patches.masked_fill(is_masked[:, None], 0),
            patch_is_masked=is_masked,
            targets={**batch.targets, "pixels": batch.patches},
        )


class PixelHead(nn.Module):
    """Linear layer from the hidden state of each patch to its pixels."""

    def __init__(self, hidden_size: int, patch_dim: int) -> None:
        super().__init__()
        self.pixels = nn.Linear(hidden_size, patch_dim)

    def forward(
        self,
        hidden_states: Tensor,
        batch: PackedBatch,
        dropout_keys: Tensor | None = None,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Returns `pixels` (patches, patch_dim)."""
        assert batch.patch_tokens is not None
        return {"pixels": self.pixels(hidden_states.index_select(0, batch.patch_tokens))}


class MaskedPatchTask(Task):
    """Prediction of the pixels of masked patches.

    A sequence is `[CLS]` and the patches of a picture, as in `ImageClassificationTask`, which can start from the run.

    Args:
        patch_size: Edge of a patch in pixels.
        max_patches: Most patches of a picture. Larger pictures are scaled down and keep their aspect ratio.
        masked_patches: Share of the patches of a picture that is masked, an exact number of each.
        normalize_pixels: True: the target is normalised by the mean and variance of its patch; False: pixels in
            [-1, 1].

    Raises:
        ConfigError: A value is out of its range.
    """

    loss_weights: Mapping[str, float] = {LOSS_TERM: 1.0}
    best_metric = "loss"
    best_mode = "min"
    wraps_epochs = True
    head_kind = "masked_patches"
    examines_splits = False
    class_scores: Mapping[str, str] = {}

    def __init__(
        self,
        patch_size: int = 16,
        max_patches: int = 196,
        masked_patches: float = 0.6,
        normalize_pixels: bool = True,
    ) -> None:
        check_at_least("task.patch_size", patch_size, 1)
        check_at_least("task.max_patches", max_patches, 1)
        if not 0 < masked_patches < 1:
            raise ConfigError(
                f"task.masked_patches is {masked_patches}. It must be a share between 0 and 1. Choose, for example, "
                "0.6."
            )
        self.patch_size = patch_size
        self.grid = PatchGrid(patch_size, max_patches, MAX_SIDE)
        self.masked_patches = masked_patches
        self.normalize_pixels = normalize_pixels

    def build_sources(self, data: PictureFiles, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads the headers of the pictures of each split."""
        read = data.load()
        sources: dict[str, SequenceSource] = {}
        for split, rows in read.splits.items():
            layout, pictures = lay_out_pictures([row.picture for row in rows], None, tokenizer.cls_id, self.grid)
            counts = {LOSS_TERM: num_masked(pictures.num_patches, self.masked_patches)}
            longest = self.grid.max_patches + 1
            source = FlatSource(layout.input_ids, layout.lengths, {}, counts, longest, pictures=pictures)
            with_facts(source, read.facts[split])
            own_seed = seed if split == "train" else None
            sources[split] = MaskedPatchSource(source, pictures, self.masked_patches, tokenizer.mask_id, own_seed)
        return sources

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:  # noqa: ARG002
        """Builds the linear layer."""
        return PixelHead(config.hidden_size, self.grid.patch_dim)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Returns the mean squared error of each masked patch, summed over them (`pixels`)."""
        assert batch.patch_is_masked is not None
        expected = batch.targets["pixels"].float() / HALF_RANGE - 1.0
        if self.normalize_pixels:
            variance, mean = torch.var_mean(expected, dim=1, keepdim=True)
            expected = (expected - mean) / (variance + _VARIANCE_EPS).sqrt()
        errors = (outputs["pixels"].float() - expected).square().mean(dim=1)
        return {LOSS_TERM: torch.where(batch.patch_is_masked, errors, 0.0).sum()}

    def to_record(self) -> dict[str, Any]:
        """Returns the division of pictures into patches."""
        return {"patch_size": self.patch_size, "max_patches": self.grid.max_patches}
