"""Pseudo-log-likelihood of sentences: each chosen token is masked once, and all copies are packed.

The score of a sentence is the sum of the log-probabilities of its chosen tokens, each predicted from the sentence in
which only this token is masked (Salazar et al. 2020, arXiv:1910.14659). In a pair of sentences, the tokens are those
that both share (Nangia et al. 2020, arXiv:2010.00133, equation 1).
"""

import hashlib
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import torch

from framework import ragged
from framework.batch import PackedBatch
from framework.data.flat_source import HeldItems
from framework.data.planning.collate import Shape, Target, pack_sequences
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.agreement import check_agreement, gather
from framework.modules.inference import Inference

POSITIONS, LABELS = "mlm_positions", "mlm_labels"
"""Targets of the masked-word head."""


def encoded_sentences(texts: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Returns (tokens,) int64 ids of each text, with special tokens."""
    # The first word of a text has a space before it, as in training.
    given = [f" {text.strip()}" for text in texts] if tokenizer.space_marked else list(texts)
    ends = np.array([tokenizer.cls_id]), np.array([tokenizer.sep_id])
    return [np.concatenate([ends[0], ids, ends[1]]).astype(np.int64) for ids in tokenizer.encode_batch(given)]


def shared_positions(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of the tokens that two sequences share, in the order of the longest matching blocks.

    Args:
        first: (tokens,) ids of a sentence.
        second: (tokens,) ids of the other sentence.

    Returns:
        (shared,) int64 positions in each sequence; equal indices hold equal tokens.
    """
    blocks = SequenceMatcher(None, first.tolist(), second.tolist(), autojunk=False).get_matching_blocks()
    sizes = np.array([block.size for block in blocks], dtype=np.int64)
    starts = (np.array([start for start, _, _ in blocks]), np.array([start for _, start, _ in blocks]))
    return ragged.ranges(starts[0], sizes), ragged.ranges(starts[1], sizes)


class MaskedCopies(HeldItems):
    """A `SequenceSource` (`framework.data.planning.plan`) with one item for each masked token of each sentence.

    Args:
        sentences: (tokens,) int64 ids of each sentence, special tokens included.
        masked: (masked,) int64 positions of the tokens of each sentence that are masked, one in each copy.
        mask_id: Id of the mask token.

    Attributes:
        sentence_of_item: (items,) int64 index of the sentence of each copy.
    """

    def __init__(self, sentences: Sequence[np.ndarray], masked: Sequence[np.ndarray], mask_id: int) -> None:
        sizes = np.array([len(ids) for ids in sentences], dtype=np.int64)
        self.sentence_of_item = np.repeat(np.arange(len(sentences)), [len(each) for each in masked])
        super().__init__(sizes[self.sentence_of_item])
        self.max_length = int(sizes.max(initial=1))
        self._ids = np.concatenate([np.zeros(0, np.int64), *sentences])
        self._starts = ragged.starts(sizes)
        self._positions = np.concatenate([np.zeros(0, np.int64), *masked])
        self._mask_id = mask_id

    @property
    def fingerprint(self) -> str:
        """Returns a hash of all ids and masked positions."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self._ids, self._item_lengths, self.sentence_of_item, self._positions):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:  # noqa: ARG002  the same at every step
        """Builds one micro-batch; its target mlm_positions has one position per copy, mlm_labels the hidden token."""
        items, lengths = sequences.indices, self._item_lengths[sequences.indices]
        ids = self._ids[ragged.ranges(self._starts[self.sentence_of_item[items]], lengths)]
        positions = ragged.starts(lengths) + self._positions[items]
        labels = ids[positions]
        ids[positions] = self._mask_id
        targets = {POSITIONS: Target(positions, "targets", 0), LABELS: Target(labels, "targets")}
        return pack_sequences(ids, lengths, sequences.sequence_ids, None, targets, {}, shape)


def pseudo_log_likelihoods(inference: Inference, source: MaskedCopies, num_sentences: int) -> np.ndarray:
    """Sums the log-probabilities of the masked tokens of each sentence. Collective: all ranks must call.

    Logits over the vocabulary are computed for masked tokens only, within `micro_batch_tokens`.

    Args:
        inference: Model with a head of masked words (`outputs["mlm"]`), on its device.
        source: Masked copies.
        num_sentences: Number of sentences.

    Returns:
        (sentences,) float64; 0 for sentences without masked tokens.

    Raises:
        DistributedError: Processes read different sentences.
    """
    check_agreement({"the fingerprint of the sentences": source.fingerprint})
    own: dict[int, float] = {}
    for batch in inference.micro_batches(source):
        with torch.inference_mode(), inference.precision.autocast(inference.device.type):
            logits = inference.model(batch)["mlm"].float()
        labels = batch.targets[LABELS]
        with torch.inference_mode():
            chosen = logits.gather(1, labels.clamp(min=0)[:, None])[:, 0] - logits.logsumexp(dim=1)
        items = batch.sequence_ids[: batch.num_sequences].tolist()
        own.update(zip(items, chosen[: len(items)].double().tolist(), strict=True))
    by_item = {item: value for part in gather(own) for item, value in part.items()}
    values = np.array([by_item[item] for item in range(len(source))], dtype=np.float64)
    return np.bincount(source.sentence_of_item, weights=values, minlength=num_sentences)
