"""Pre-training: masked words, with or without next-sentence prediction (Devlin et al. 2019, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.masking import Masking, Replacements
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import check_at_least
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.cross_entropy import cross_entropy_and_z_sum, cross_entropy_sum
from framework.tasks.pretraining.blanks import BlankSource, TopWords, read_blanks, top_words, word_lists
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.pretraining.store_sequences import StoreSequences, mask_rates
from framework.tasks.task import Task

if TYPE_CHECKING:
    from torchmetrics import Metric


class PretrainingTask(Task):
    """Masked language modelling and, optionally, next-sentence prediction.

    Args:
        sequence_length: Most tokens of a sequence, special tokens included.
        nsp: True trains next-sentence prediction in addition to masked words; sequences are then pairs.
        mask_rate: Fraction of the maskable tokens that is masked in training, as an exact count in each sequence.
        eval_mask_rate: Fraction of the maskable tokens that is masked in evaluation.
        mask_rate_end: Final mask rate in training, reached linearly; None keeps the rate constant.
        mask_rate_steps: Optimizer steps until `mask_rate_end` is reached; required with it.
        masking: Unit of masking: tokens, whole words, or spans of words (`framework.data.masking`).
        masked_share: Share of the chosen tokens that becomes the mask token.
        random_share: Share of the chosen tokens that becomes a random word; the others stay.
        nsp_weight: Weight of the next-sentence term of the loss; the word term has weight 1.
        z_loss: Weight of a term that prevents the words' logits from drifting in training
            (`framework.nn.cross_entropy.cross_entropy_and_z_sum`); 0 disables it.
        top_k: Number of words predicted for each blank.

    Raises:
        ConfigError: `top_k` is below 1, a rate is outside (0, 1], the shares exceed 1, a weight is negative, or
            `mask_rate_end` is given without `mask_rate_steps`.
    """

    best_metric = "loss"
    best_mode = "min"
    wraps_epochs = True
    head_kind = "pretraining"
    vocabulary_term = "mlm"
    fields = ("text",)
    examines_splits = False
    changeable_keys = ("top_k",)
    head_rows: Mapping[str, str] = {"mlm": "mlm_positions", "": "sequences"}

    def __init__(
        self,
        sequence_length: int = 128,
        nsp: bool = True,
        mask_rate: float = 0.30,
        eval_mask_rate: float = 0.15,
        mask_rate_end: float | None = None,
        mask_rate_steps: int | None = None,
        masking: Masking = "token",
        masked_share: float = 0.8,
        random_share: float = 0.1,
        nsp_weight: float = 1.0,
        z_loss: float = 0.0,
        top_k: int = 5,
    ) -> None:
        check_at_least("task.top_k", top_k, 1)
        self.top_k = top_k
        check_at_least("task.nsp_weight", nsp_weight, 0, "Set 0 to disable the term.")
        check_at_least("task.z_loss", z_loss, 0, "Set 0 to disable the term.")
        self.sequence_length = sequence_length
        self.nsp = nsp
        self.sequences = StoreSequences(
            sequence_length,
            nsp,
            *mask_rates(mask_rate, eval_mask_rate, mask_rate_end, mask_rate_steps),
            masking,
            Replacements(masked_share, random_share),
        )
        self._validation_weights = {"mlm": 1.0, "nsp": nsp_weight} if nsp else {"mlm": 1.0}
        self.loss_weights = self._validation_weights | ({"z": z_loss} if z_loss else {})

    def build_sources(self, data: StoreData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Opens the store and returns `train` and, if documents are held out, `validation`.

        Raises:
            DataError: The store is missing or was built with another tokenizer, or a split has too few documents.
        """
        return self.sequences.build(data, tokenizer, seed)

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """Builds the head of the encoder's family.

        Raises:
            ConfigError: Sequences are longer than the encoder's positions.
        """
        self.sequences.check_positions(config)
        return build_pretraining_head(encoder, config, self.nsp)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Returns cross-entropy sums over masked words (`mlm`) and sequences (`nsp`), and the z-loss sum (`z`)."""
        sums = {}
        if "z" in self.loss_weights:
            sums["mlm"], sums["z"] = cross_entropy_and_z_sum(outputs["mlm"], batch.targets["mlm_labels"])
        else:
            sums["mlm"] = cross_entropy_sum(outputs["mlm"], batch.targets["mlm_labels"])
        if self.nsp:
            sums["nsp"] = cross_entropy_sum(outputs["nsp"], batch.targets["nsp_labels"])
        return sums

    def sequence_losses(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> Tensor:
        """Returns the weighted sum of the terms of each sequence: (sequences,) fp32, 0 for dummies.

        The terms of words are means over the masked words of the sequence.
        """
        logits, labels = outputs["mlm"].float(), batch.targets["mlm_labels"]
        is_target = labels != IGNORE_INDEX
        words = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
        if "z" in self.loss_weights:
            words = words + self.loss_weights["z"] * torch.where(is_target, logits.logsumexp(dim=1).square(), 0.0)
        owners = torch.searchsorted(batch.cu_seqlens[1:].long(), batch.targets["mlm_positions"], right=True)
        empty = words.new_zeros(len(batch.lengths))
        counts = empty.index_add(0, owners, is_target.float())
        losses = empty.index_add(0, owners, words) / counts.clamp(min=1)
        if self.nsp:
            nsp_losses = nn.functional.cross_entropy(
                outputs["nsp"].float(), batch.targets["nsp_labels"], ignore_index=IGNORE_INDEX, reduction="none"
            )
            losses = losses + self.loss_weights["nsp"] * nsp_losses
        return losses

    @property
    def validation_weights(self) -> Mapping[str, float]:
        """Returns the weights without the z-loss.

        `val/loss` is then comparable between runs. Without next-sentence prediction its exponential is a perplexity.
        """
        return self._validation_weights

    @property
    def class_scores(self) -> Mapping[str, str]:
        """Returns the logits of masked words and, with NSP, of next-sentence prediction, with their labels."""
        return {term: f"{term}_labels" for term in self._validation_weights}

    def build_metrics(self) -> dict[str, Metric]:
        """Builds the accuracy of masked words (`mlm_accuracy`) and next-sentence prediction (`nsp_accuracy`)."""
        # torchmetrics takes seconds to import, and predictions need no metrics.
        from framework.metrics.classification import Accuracy

        return {f"{term}_accuracy": Accuracy() for term in self._validation_weights}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        for term in self._validation_weights:
            metrics[f"{term}_accuracy"].update(outputs[term], batch.targets[f"{term}_labels"])

    def to_record(self) -> dict[str, Any]:
        """Returns the sequence length and the names of the next-sentence labels."""
        record: dict[str, Any] = {"sequence_length": self.sequence_length}
        if self.nsp:
            record["nsp_labels"] = ["follows", "random"]
        return record

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks that the text has a blank, and that all of its blanks fit into a sequence."""
        read_blanks(row, tokenizer, self.sequence_length)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> BlankSource:
        """Builds one sequence per text."""
        texts = [read_blanks(row, tokenizer, self.sequence_length) for row in rows]
        return BlankSource(texts, tokenizer, self.sequence_length, list(self.loss_weights))

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[TopWords]:
        """Returns the most probable words of each blank."""
        return top_words(outputs, batch, self.top_k)

    def assemble(self, source: BlankSource, decoded: Sequence[TopWords]) -> list[dict[str, Any]]:
        """Returns `blanks` of each text: for each blank the words and their probabilities."""
        return word_lists(source, decoded)
