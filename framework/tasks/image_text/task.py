"""Pictures and texts in one space, learned from pictures with captions by one encoder for both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.data.facts import with_facts
from framework.data.flat_source import FlatSource
from framework.data.layout import SHORTEST, check_max_length
from framework.data.planning.plan import SequenceSource
from framework.data.reading.images import PatchGrid, PictureFile, PictureFolder
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import check_above_zero, check_at_least, check_choice
from framework.models.config import PATCH_GRID, EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.embedding.head import item_vectors
from framework.tasks.examination import Examination, ItemResults
from framework.tasks.image_text.data import CaptionedImages
from framework.tasks.image_text.examine import examine_retrieval
from framework.tasks.image_text.features import pair_source, single_source
from framework.tasks.image_text.head import ImageTextHead
from framework.tasks.image_text.losses import contrast, sigmoid_pairs
from framework.tasks.image_text.scores import Retrieval, retrieval_scores
from framework.tasks.pooling import POOLINGS
from framework.tasks.step_level import StepLevelTask

IMAGE, TEXT = "image", "text"
"""Fields of prediction: the path of a picture, or a text."""

_INITIAL_BIAS = -10.0
"""Bias of the sigmoid loss at the start, since almost all pairs of a step do not match (SigLIP, section 3.2)."""


class ImageTextTask(StepLevelTask):
    """Contrastive learning of pictures and captions. The loss compares all pairs of a global step.

    Args:
        objective: "contrastive": InfoNCE in both directions (CLIP); "sigmoid": one binary decision per pair (SigLIP).
        patch_size: Edge of a patch in pixels.
        max_patches: Most patches of a picture; larger pictures are scaled down.
        max_length: Maximum number of tokens of a text, special tokens included. Longer texts are truncated.
        pooling: Name in `framework.tasks.pooling`: "cls" or "mean".
        normalize: Scale predicted embeddings to length 1. Losses and metrics always use cosines.
        temperature: Divisor of cosines in the loss at the start of training, which learns it.
        images: Folder of the pictures of predicted rows; None: the working folder.

    Raises:
        ConfigError: A name is unknown or a number is out of range.
    """

    best_metric = "mean_recall"
    best_mode = "max"
    wraps_epochs = False
    head_kind = "image_text"
    fields = (IMAGE,)
    field_choices = ((IMAGE,), (TEXT,))
    scores_predictions = True
    changeable_keys = ("images", "normalize")

    def __init__(
        self,
        objective: Literal["contrastive", "sigmoid"] = "contrastive",
        patch_size: int = 16,
        max_patches: int = 196,
        max_length: int = 64,
        pooling: str = "mean",
        normalize: bool = True,
        temperature: float = 0.07,
        images: str | None = None,
    ) -> None:
        check_choice("task.objective", objective, ("contrastive", "sigmoid"))
        check_at_least("task.patch_size", patch_size, 1)
        check_at_least("task.max_patches", max_patches, 1)
        check_max_length("task.max_length", max_length, SHORTEST)
        check_choice("task.pooling", pooling, POOLINGS)
        check_above_zero("task.temperature", temperature, 0.07)
        self.objective = objective
        self.patch_size = patch_size
        self.grid = PatchGrid(patch_size, max_patches, PATCH_GRID)
        self.max_length = max_length
        self.pooling = pooling
        self.normalize = normalize
        self.temperature = temperature
        self.images = images
        self._folder: PictureFolder | None = None
        is_sigmoid = objective == "sigmoid"
        self.loss_weights = {"sigmoid": 1.0} if is_sigmoid else {"caption_contrast": 0.5, "picture_contrast": 0.5}

    def build_sources(self, data: CaptionedImages, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Reads and tokenizes the rows of each split, and plans the patches of their pictures."""
        rows = data.with_masks(tokenizer).load()
        terms = list(self.loss_weights)
        return {
            split: with_facts(pair_source(each, terms, tokenizer, self.grid, self.max_length), rows.facts[split])
            for split, each in rows.splits.items()
        }

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds pooling, scale and, for the sigmoid loss, bias."""
        bias = _INITIAL_BIAS if self.objective == "sigmoid" else None
        return ImageTextHead(POOLINGS[self.pooling], self.normalize, 1.0 / self.temperature, bias)

    def step_loss_sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums InfoNCE over pictures (`caption_contrast`) and captions (`picture_contrast`), or the sigmoid loss."""
        if len(rows["members"]) == 0:  # a step without real rows has no scale
            return dict.fromkeys(self.loss_weights, rows["embeddings"].sum())
        if self.objective == "sigmoid":
            return {"sigmoid": sigmoid_pairs(rows)}
        return dict(zip(self.loss_weights, contrast(rows).unbind(), strict=True))

    def to_record(self) -> dict[str, Any]:
        """Returns pooling, normalization, and the sizes of texts and pictures."""
        return {
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_length": self.max_length,
            "patch_size": self.patch_size,
            "max_patches": self.grid.max_patches,
        }

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks that the picture of a row can be read.

        Raises:
            DataError: It cannot.
        """
        if IMAGE in row.values:
            self._find(row)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """Builds one item per row: a picture, or a text."""
        items = [self._find(row) if IMAGE in row.values else row.values[TEXT] for row in rows]
        return single_source(items, list(self.loss_weights), tokenizer, self.grid, self.max_length)

    def _find(self, row: Row) -> PictureFile:
        if self._folder is None:
            self._folder = PictureFolder(Path(self.images or "."))
        return self._folder.find(row.location, row.values[IMAGE])

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[np.ndarray]:
        """Returns (1 or 2, hidden) fp32 vectors per item: of its picture, its text, or of both."""
        return item_vectors(outputs["embeddings"], batch)

    def vector_size(self, config: EncoderConfig) -> int:
        """Returns the hidden size."""
        return config.hidden_size

    def assemble(self, source: FlatSource, decoded: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Returns the `embedding` of each row as a list of numbers."""
        return [{"embedding": vectors[0].tolist()} for vectors in decoded]

    def score(self, source: FlatSource, decoded: Sequence[np.ndarray]) -> dict[str, float]:
        """Returns `retrieval_scores`."""
        return retrieval_scores(Retrieval(decoded, source.records))

    def examine(self, source: FlatSource, results: ItemResults) -> Examination:
        """Builds the rows of `examine_retrieval`."""
        return examine_retrieval(source.records, results)
