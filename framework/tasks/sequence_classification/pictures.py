"""Classification of pictures, or of a picture and a text in one sequence: labels or a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from torch import nn

from framework.data.examples.answers import require_text
from framework.data.examples.pictures import LabelledPicture, PictureTable
from framework.data.examples.table import LabelledText
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import SHORTEST, check_max_length, lay_out
from framework.data.planning.plan import SequenceSource
from framework.data.reading.images import PatchGrid, PictureFile, PictureFolder
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, check_at_least
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.sequence_classification.features import targets_of
from framework.tasks.sequence_classification.picture_features import lay_out_pictures
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.sequence_classification.windows import Scoring

MAX_SIDE = 64
"""Most rows and most columns of patches of a picture, `EncoderConfig.patch_grid` by default."""


class ImageClassificationTask(SequenceClassificationTask):
    """Classification of pictures with the problems of `SequenceClassificationTask`.

    A picture alone is the sequence `[CLS]` and its patches (ViT, Dosovitskiy et al. 2021, arXiv:2010.11929, section
    3.1), or with pooling by the mean its patches only. With `fusion`, the text comes first and the patches follow in
    the same sequence (ViLT, Kim et al. 2021, arXiv:2102.03334, section 3.1; here the bias of the patch embeddings is
    the embedding of their modality).

    Args:
        patch_size: Edge of a patch in pixels.
        max_patches: Most patches of a picture. Larger pictures are scaled down and keep their aspect ratio.
        fusion: "joint": the text of `data.text_column` and the patches are one sequence; None: pictures alone.
        max_length: Most tokens of the text, special tokens included.
        pooling: Name in `framework.tasks.pooling`: "cls" or "mean".
        classifier_dropout: Probability of dropping a channel before the classifier.
        problem: "single_label", "multi_label" or "regression".
        best_metric: See SequenceClassificationTask.
        label_smoothing: Fraction of the target spread over all labels (single_label).
        class_weights: "balanced", {label: weight}, or None (single_label).
        threshold: Probability above which a label is predicted (multi_label).
        images: Folder of the pictures to predict; None: the working folder. Training reads `data.images`.

    Raises:
        ConfigError: A value is out of its range, or a setting of another problem is given.
    """

    changeable_keys = ("threshold", "images")
    allows_augmentation = False
    explains_predictions = False
    head_rows: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        patch_size: int = 16,
        max_patches: int = 196,
        fusion: Literal["joint"] | None = None,
        max_length: int = 64,
        pooling: str = "cls",
        classifier_dropout: float = 0.0,
        problem: str = "single_label",
        best_metric: str | None = None,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | dict[str, float] | None = None,
        threshold: float = 0.5,
        images: str | None = None,
    ) -> None:
        check_at_least("task.patch_size", patch_size, 1)
        check_at_least("task.max_patches", max_patches, 1)
        check_max_length("task.max_length", max_length, SHORTEST)
        super().__init__(
            max_length=max_length,
            pooling=pooling,
            classifier_dropout=classifier_dropout,
            problem=problem,
            best_metric=best_metric,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            threshold=threshold,
            scoring=Scoring(projection="none"),
        )
        # Published classifiers of pictures read no text.
        self.head_kind = "image_classification" if fusion is None else "image_text_classification"
        self.patch_size = patch_size
        self.grid = PatchGrid(patch_size, max_patches, MAX_SIDE)
        self.fusion = fusion
        self._images = images or "."
        self._folder: PictureFolder | None = None

    def build_sources(self, data: PictureTable, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:  # type: ignore[override]
        """Reads the rows of each split and the headers of their pictures; see SequenceClassificationTask.

        Raises:
            ConfigError: Texts are given without `fusion`, or the other way round.
        """
        if (self.fusion is None) != (data.text_column is None):
            raise ConfigError(
                f"task.fusion is {self.fusion}, but data.text_column is {data.text_column}. A text is read together "
                "with a picture, in one sequence. Set both task.fusion=joint and data.text_column, or both to null."
            )
        return super().build_sources(data, tokenizer, seed)

    def _source(self, rows: Sequence[LabelledText], tokenizer: Tokenizer, keep: bool) -> FlatSource:
        pictures = [row.picture for row in rows if isinstance(row, LabelledPicture) and row.picture is not None]
        targets, counts = targets_of([row.label for row in rows], self.problem, self.groups.of_rows(rows))
        texts = [row.text for row in rows]
        return self._picture_source(pictures, texts, tokenizer, targets, counts, rows if keep else ())

    @property
    def fields(self) -> tuple[str, ...]:
        """Returns the field of the picture, and with fusion that of the text."""
        return ("image",) if self.fusion is None else ("image", "text")

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:  # noqa: ARG002  pictures need no tokenizer
        """Checks that the picture can be read, and that a text is not empty."""
        self._picture(row)
        if self.fusion is not None:
            require_text(row.location, "text", row.values["text"])

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> FlatSource:
        """Builds one sequence per row, without a label."""
        targets, counts = targets_of([None] * len(rows), self.problem)
        texts = [row.values.get("text", "") for row in rows]
        return self._picture_source([self._picture(row) for row in rows], texts, tokenizer, targets, counts)

    def _picture(self, row: Row) -> PictureFile:
        if self._folder is None:
            self._folder = PictureFolder(self._images)
        return self._folder.find(row.location, row.values["image"])

    def _picture_source(
        self,
        pictures: Sequence[PictureFile],
        texts: Sequence[str],
        tokenizer: Tokenizer,
        targets: Mapping[str, FlatTarget],
        counts: Mapping[str, np.ndarray],
        records: Sequence[LabelledText] = (),
    ) -> FlatSource:
        """Builds one sequence per picture; the texts are used with fusion only."""
        words = None if self.fusion is None else lay_out(texts, None, tokenizer, self.max_length)
        class_id = tokenizer.cls_id if self.pooling == "cls" else None
        layout, sequences = lay_out_pictures(pictures, words, class_id, self.grid)
        return FlatSource(
            layout.input_ids,
            layout.lengths,
            targets,
            counts,
            self.grid.max_patches + (1 if words is None else self.max_length),
            layout.token_type_ids,
            records=records,
            cutting=layout.cutting,
            pictures=sequences,
        )

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the head with the number of scores of the problem.

        Raises:
            ConfigError: Pictures may have more rows or columns of patches than the encoder has positions for.
        """
        most = min(MAX_SIDE, self.grid.max_patches)
        if config.patch_positions == "factorised" and 0 < config.patch_grid < most:
            raise ConfigError(
                f"model.patch_grid is {config.patch_grid}, but pictures may have {most} rows or columns of patches "
                f"(task.max_patches={self.grid.max_patches}). Each needs a position. Set model.patch_grid={most}."
            )
        return super().build_head(encoder, config)

    def to_record(self) -> dict[str, Any]:
        """Returns the values of SequenceClassificationTask, and the division of pictures into patches."""
        division = {"patch_size": self.patch_size, "max_patches": self.grid.max_patches, "fusion": self.fusion}
        return super().to_record() | division
