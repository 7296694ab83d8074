"""Settings of sequences from a token store that all objectives over masked words share."""

from dataclasses import dataclass

import numpy as np

from framework.data.masking import Masking, Replacements
from framework.data.planning.mixture import Mixture
from framework.data.planning.plan import SequenceSource
from framework.data.sentence_pairs import SentenceChunks
from framework.data.store.sequence_index import Division
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.models.config import EncoderConfig
from framework.tasks.pretraining.features import MaskRate, PretrainingSource, num_specials


@dataclass(frozen=True)
class StoreSequences:
    """Length, layout and masks of the sequences of a token store.

    Attributes:
        length: Most tokens of a sequence, special tokens included.
        nsp: True: sequences are pairs of segments.
        mask_rate: Rate of training.
        eval_mask_rate: Rate of evaluation.
        masking: Unit of masking.
        replacements: Shares of mask tokens and random words among the chosen tokens.
    """

    length: int
    nsp: bool
    mask_rate: MaskRate
    eval_mask_rate: MaskRate
    masking: Masking
    replacements: Replacements

    def build(
        self,
        data: StoreData,
        tokenizer: Tokenizer,
        seed: int,
        source_class: type[PretrainingSource] = PretrainingSource,
    ) -> dict[str, SequenceSource]:
        """Opens the store and returns `train` and, if documents are held out, `validation`.

        Args:
            data: Settings of the store.
            tokenizer: Tokenizer of the model.
            seed: Seed of the run.
            source_class: Class of the splits.

        Raises:
            DataError: The store is missing or was built with another tokenizer, or a split has too few documents.
        """
        store = data.opened
        is_other = store.meta["tokenizer_fingerprint"] != tokenizer.fingerprint
        if is_other and not Tokenizer.from_folder(store.folder / "tokenizer").same_ids(tokenizer):
            raise DataError(
                f"the token store {data.store} was made with another tokenizer than {tokenizer.folder}. Store and "
                "model must use the same tokenizer. Prepare a store with this one (python -m framework.prepare "
                f"vocabulary=given vocabulary.path={tokenizer.folder} store=FOLDER), or train new weights with "
                f"tokenizer.path={store.folder / 'tokenizer'}."
            )
        division = Division(self.length - num_specials(self.nsp, tokenizer), self.nsp)
        sources: dict[str, SequenceSource] = {}
        for split, index in data.indexes(division).items():
            training = split == "train"
            sources[split] = source_class(
                store,
                SentenceChunks(index, division, data.block_size),
                data.mixture(index) if training else Mixture(np.array([len(index)]), np.ones(1)),
                data.shuffle,
                tokenizer,
                self.mask_rate if training else self.eval_mask_rate,
                self.masking,
                seed if training else None,
                self.replacements,
            )
        return sources

    def check_positions(self, config: EncoderConfig) -> None:
        """Checks that sequences are not longer than the encoder's positions.

        Raises:
            ConfigError: They are.
        """
        if self.length > config.max_sequence_length:
            raise ConfigError(
                f"task.sequence_length is {self.length}, but the encoder has {config.max_sequence_length} positions. "
                "Sequences must not be longer. Lower task.sequence_length or raise model.max_position_embeddings."
            )


def mask_rates(
    mask_rate: float, eval_mask_rate: float, mask_rate_end: float | None, mask_rate_steps: int | None
) -> tuple[MaskRate, MaskRate]:
    """Returns the mask rates of training and evaluation.

    Raises:
        ConfigError: A rate is outside (0, 1], or `mask_rate_end` is given without `mask_rate_steps`.
    """
    rates = {"mask_rate": mask_rate, "eval_mask_rate": eval_mask_rate, "mask_rate_end": mask_rate_end}
    for name, rate in rates.items():
        if rate is not None and not 0 < rate <= 1:
            raise ConfigError(
                f"task.{name} is {rate}. A rate must be above 0 and at most 1. Choose, for example, 0.15."
            )
    if mask_rate_end is not None and (mask_rate_steps is None or mask_rate_steps < 1):
        raise ConfigError(
            f"task.mask_rate_end is {mask_rate_end}, but task.mask_rate_steps is {mask_rate_steps}. A change of the "
            "rate takes at least 1 step. Set mask_rate_steps to the optimizer steps until the final rate."
        )
    last = mask_rate if mask_rate_end is None else mask_rate_end
    return MaskRate(mask_rate, last, mask_rate_steps or 0), MaskRate(eval_mask_rate, eval_mask_rate)
