"""Pre-training: hidden words, with or without next-sentence prediction (Devlin et al. 2019, arXiv:1810.04805)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torchmetrics import Metric

from framework.batch import PackedBatch
from framework.data.masking import Masking
from framework.data.planning.mixture import Mixture
from framework.data.planning.plan import SequenceSource
from framework.data.reading.rows import Row
from framework.data.sentence_pairs import SentenceChunks
from framework.data.store.sequence_index import Division
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.metrics.classification import Accuracy
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.cross_entropy import cross_entropy_and_z_sum, cross_entropy_sum
from framework.tasks.pretraining.blanks import BlankSource, FoundWords, find_words, read_blanks, word_lists
from framework.tasks.pretraining.features import MaskRate, PretrainingSource, num_specials
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.task import Task


class PretrainingTask(Task):
    """Fill in hidden words; tell whether the second segment follows the first.

    Args:
        sequence_length: Most tokens of a sequence, special tokens included.
        nsp: Train next-sentence prediction beside masked words; sequences are then pairs.
        mask_rate: Share of the maskable tokens that is hidden in training, an exact count in each sequence.
        eval_mask_rate: The same in evaluation.
        mask_rate_end: Where the training rate goes linearly; None keeps it.
        mask_rate_steps: Optimizer steps in which it gets there; needed with `mask_rate_end`.
        masking: Hide single tokens, whole words, or spans of words (`framework.data.masking.mask_tokens`).
        nsp_weight: Weight of the next-sentence term of the loss; the word term has weight 1.
        z_loss: Weight of a term that keeps the words' logits from drifting in training
            (`framework.nn.cross_entropy.cross_entropy_and_z_sum`); 0 leaves it out.
        top_k: Number of words predicted for each blank.

    Raises:
        ConfigError: `top_k` is below 1, a rate outside (0, 1], a negative weight, or `mask_rate_end` without
            `mask_rate_steps`.
    """

    best_metric = "loss"
    best_mode = "min"
    wraps_epochs = True
    head_kind = "pretraining"
    changeable_keys = ("top_k",)

    def __init__(
        self,
        sequence_length: int = 128,
        nsp: bool = True,
        mask_rate: float = 0.30,
        eval_mask_rate: float = 0.15,
        mask_rate_end: float | None = None,
        mask_rate_steps: int | None = None,
        masking: Masking = "token",
        nsp_weight: float = 1.0,
        z_loss: float = 0.0,
        top_k: int = 5,
    ) -> None:
        if top_k < 1:
            raise ConfigError(f"task.top_k is {top_k}. Each blank needs at least one word. Set 1 or more.")
        self.top_k = top_k
        rates = {"mask_rate": mask_rate, "eval_mask_rate": eval_mask_rate, "mask_rate_end": mask_rate_end}
        for name, rate in rates.items():
            if rate is not None and not 0 < rate <= 1:
                raise ConfigError(f"{name} is {rate}, it must be above 0 and at most 1.")
        if mask_rate_end is not None and (mask_rate_steps is None or mask_rate_steps < 1):
            raise ConfigError(
                f"task.mask_rate_end is {mask_rate_end}, but mask_rate_steps is {mask_rate_steps}; set "
                "mask_rate_steps to "
                "the optimizer "
                "steps in which the rate gets there, at least 1."
            )
        for name, weight in {"nsp_weight": nsp_weight, "z_loss": z_loss}.items():
            if not weight >= 0:
                raise ConfigError(f"{name} is {weight}, it must be at least 0.")
        self.sequence_length = sequence_length
        self.nsp = nsp
        self.mask_rate = MaskRate(
            mask_rate, mask_rate if mask_rate_end is None else mask_rate_end, mask_rate_steps or 0
        )
        self.eval_mask_rate = MaskRate(eval_mask_rate, eval_mask_rate)
        self.masking: Masking = masking
        self._validation_weights = {"mlm": 1.0, "nsp": nsp_weight} if nsp else {"mlm": 1.0}
        self.loss_weights = self._validation_weights | ({"z": z_loss} if z_loss else {})

    def build_sources(self, data: StoreData, tokenizer: Tokenizer, seed: int) -> dict[str, SequenceSource]:
        """Opens the store: `train`, and `validation` where documents are held out.

        Raises:
            DataError: The store is missing, was made with another tokenizer, or a split has too few documents.
        """
        store = data.opened
        is_other = store.meta["tokenizer_fingerprint"] != tokenizer.fingerprint
        if is_other and not Tokenizer.from_folder(store.folder / "tokenizer").same_ids(tokenizer):
            raise DataError(
                f"the token store {data.store} was made with another tokenizer than {tokenizer.folder}; "
                "prepare a store with this one (python -m framework.prepare vocabulary=given "
                f"vocabulary.path={tokenizer.folder} store=FOLDER), or train fresh weights with "
                f"tokenizer.path={store.folder / 'tokenizer'}."
            )
        division = Division(self.sequence_length - num_specials(self.nsp, tokenizer), self.nsp)
        sources: dict[str, SequenceSource] = {}
        for split, index in data.indexes(division).items():
            training = split == "train"
            sources[split] = PretrainingSource(
                store,
                SentenceChunks(index, division, data.block_size),
                data.mixture(index) if training else Mixture(np.array([len(index)]), np.ones(1)),
                data.shuffle,
                tokenizer,
                self.mask_rate if training else self.eval_mask_rate,
                self.masking,
                seed if training else None,
            )
        return sources

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        """The head of the encoder's family.

        Raises:
            ConfigError: Sequences are longer than the encoder's positions.
        """
        if self.sequence_length > config.max_sequence_length:
            raise ConfigError(
                f"task.sequence_length is {self.sequence_length}, but the encoder has {config.max_sequence_length} "
                "positions; shorten the sequences or raise model.max_position_embeddings."
            )
        return build_pretraining_head(encoder, config, self.nsp)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        """Cross-entropy summed over hidden words (`mlm`) and over sequences (`nsp`); over the words also `z`."""
        sums = {}
        if "z" in self.loss_weights:
            sums["mlm"], sums["z"] = cross_entropy_and_z_sum(outputs["mlm"], batch.targets["mlm_labels"])
        else:
            sums["mlm"] = cross_entropy_sum(outputs["mlm"], batch.targets["mlm_labels"])
        if self.nsp:
            sums["nsp"] = cross_entropy_sum(outputs["nsp"], batch.targets["nsp_labels"])
        return sums

    @property
    def validation_weights(self) -> Mapping[str, float]:
        """Without the z-loss: `val/loss` compares runs, and its exponential is a perplexity where nsp is false."""
        return self._validation_weights

    @property
    def class_scores(self) -> Mapping[str, str]:
        """The words, and with NSP whether the second segment follows."""
        return {term: f"{term}_labels" for term in self._validation_weights}

    def build_metrics(self) -> dict[str, Metric]:
        """Share of right guesses: of hidden words (`mlm_accuracy`) and of next sentences (`nsp_accuracy`)."""
        return {f"{term}_accuracy": Accuracy() for term in self._validation_weights}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        """Adds one micro-batch."""
        for term in self._validation_weights:
            metrics[f"{term}_accuracy"].update(outputs[term], batch.targets[f"{term}_labels"])

    def side_config(self) -> dict[str, Any]:
        """The lengths and the meaning of the next-sentence labels."""
        side: dict[str, Any] = {"sequence_length": self.sequence_length}
        if self.nsp:
            side["nsp_labels"] = ["follows", "random"]
        return side

    @property
    def fields(self) -> tuple[str, ...]:
        """Returns the field of the text with blanks."""
        return ("text",)

    @property
    def examines_splits(self) -> bool:
        """Returns False: a split has too many hidden words to show, and its loss summarizes them."""
        return False

    def check_row(self, row: Row, tokenizer: Tokenizer) -> None:
        """Checks that the text has a blank, and that all of its blanks fit into a sequence."""
        read_blanks(row, tokenizer, self.sequence_length)

    def build_source(self, rows: Sequence[Row], tokenizer: Tokenizer) -> BlankSource:
        """Builds one sequence per text."""
        texts = [read_blanks(row, tokenizer, self.sequence_length) for row in rows]
        return BlankSource(texts, tokenizer, self.sequence_length, list(self.loss_weights))

    def decode(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> list[FoundWords]:
        """Returns the most probable words of each blank."""
        return find_words(outputs, batch, self.top_k)

    def assemble(self, source: SequenceSource, decoded: Sequence[FoundWords]) -> list[dict[str, Any]]:
        """Returns `blanks` of each text: for each blank the words and their probabilities."""
        assert isinstance(source, BlankSource)
        return word_lists(source, decoded)
