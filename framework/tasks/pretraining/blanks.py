"""Encodes texts with blanks (`A [MASK] film.`), one sequence per text, and decodes the predicted words of each blank.

Layout: `[CLS] A [SEP]`, also for models with next-sentence prediction. A blank is the mask token of the tokenizer, of
BERT or of RoBERTa.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework import ragged
from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.flat_source import HeldItems
from framework.data.planning.collate import Shape, Target, pack_sequences
from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import DataError

_USUAL_MASKS = ("[MASK]", "<mask>")
_NUM_SPECIALS = 2


@dataclass(frozen=True)
class BlankText:
    """A text with blanks as ids, special tokens included.

    Attributes:
        input_ids: (tokens,) int64.
        positions: (blanks,) int64, ascending indices of the blanks in `input_ids`.
    """

    input_ids: np.ndarray
    positions: np.ndarray


def read_blanks(row: Row, tokenizer: Tokenizer, max_length: int) -> BlankText:
    """Encodes a text with blanks; a longer text is truncated around them.

    Raises:
        DataError: There is no blank, or the blanks do not fit into one sequence.
    """
    text, mask = row.values["text"], str(tokenizer.backend.id_to_token(tokenizer.mask_id))
    pieces = re.split("|".join(map(re.escape, {mask, *_USUAL_MASKS})), text)
    if len(pieces) == 1:
        raise DataError(
            f"{row.location}: {text[:60]!r} has no blank. Each text needs at least one. Write {mask} for each missing "
            "word."
        )
    if tokenizer.space_marked:
        # The space before a word is part of its token, also for a hidden word. The first word has one, as in training.
        pieces = [f" {pieces[0].strip()}".rstrip(), *(piece.rstrip() for piece in pieces[1:])]
    ids: list[int] = []
    blanks: list[int] = []
    for index, piece in enumerate(tokenizer.encode_batch(pieces)):
        if index:
            blanks.append(len(ids))
            ids.append(tokenizer.mask_id)
        ids += piece.tolist()
    room, span = max_length - _NUM_SPECIALS, blanks[-1] + 1 - blanks[0]
    if span > room:
        raise DataError(
            f"{row.location}: from the first to the last blank there are {span} tokens, but a sequence has room for "
            f"{room}. All blanks of a text must fit. Shorten the text."
        )
    first = min(max(blanks[0] - (room - span) // 2, 0), max(len(ids) - room, 0))
    inside = [tokenizer.cls_id, *ids[first : first + room], tokenizer.sep_id]
    return BlankText(np.array(inside, dtype=np.int64), np.array(blanks, dtype=np.int64) - first + 1)


class BlankSource(HeldItems):
    """A `SequenceSource` (`framework.data.planning.plan`) of texts with blanks, the same in every epoch and step.

    Args:
        texts: Texts in row order.
        tokenizer: Tokenizer that converts ids to words.
        max_length: Largest number of tokens of a sequence.
        terms: Loss terms, which have no targets here.
    """

    def __init__(self, texts: Sequence[BlankText], tokenizer: Tokenizer, max_length: int, terms: Sequence[str]) -> None:
        super().__init__(np.array([len(text.input_ids) for text in texts], dtype=np.int64))
        self.texts = texts
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._terms = terms

    @property
    def fingerprint(self) -> str:
        """Returns a hash of all ids."""
        digest = hashlib.blake2b(self._item_lengths.tobytes(), digest_size=16)
        for text in self.texts:
            digest.update(text.input_ids.tobytes() + text.positions.tobytes())
        return digest.hexdigest()

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:  # noqa: ARG002  the same at every step
        """Builds one micro-batch; its target mlm_positions (targets,) are the positions of the blanks."""
        texts, lengths = [self.texts[index] for index in sequences.indices], self._item_lengths[sequences.indices]
        starts = ragged.starts(lengths)
        empty = np.zeros(0, dtype=np.int64)
        ids = np.concatenate([empty, *(text.input_ids for text in texts)])
        positions = np.concatenate(
            [empty, *(text.positions + start for text, start in zip(texts, starts, strict=True))]
        )
        unknown = np.full(len(positions), IGNORE_INDEX, dtype=np.int64)
        targets = {"mlm_positions": Target(positions, "targets", 0), "mlm_labels": Target(unknown, "targets")}
        return pack_sequences(
            ids, lengths, sequences.sequence_ids, None, targets, dict.fromkeys(self._terms, 0.0), shape
        )


TopWords = tuple[np.ndarray, np.ndarray]
"""(blanks, top) ids and probabilities of a text, the best first."""


def top_words(outputs: Mapping[str, Tensor], batch: PackedBatch, top_k: int) -> list[TopWords]:
    """Returns the best words of each blank of a micro-batch.

    Args:
        outputs: `mlm`, logits (targets, vocab).
        batch: Batch with the target `mlm_positions`.
        top_k: Number of words per blank.
    """
    probabilities, ids = outputs["mlm"].float().softmax(dim=-1).topk(min(top_k, outputs["mlm"].shape[-1]), dim=-1)
    ends = batch.cu_seqlens[1 : batch.num_sequences + 1].long()
    positions = batch.targets["mlm_positions"]
    # The filler of a micro-batch without blanks has position 0 and belongs to no sequence.
    bounds = torch.searchsorted(positions, ends).tolist() if len(ends) else []
    starts = [0, *bounds][:-1]
    top = (ids.cpu().numpy(), probabilities.cpu().numpy())
    return [(top[0][start:stop], top[1][start:stop]) for start, stop in zip(starts, bounds, strict=True)]


def word_lists(source: BlankSource, decoded: Sequence[TopWords]) -> list[dict[str, Any]]:
    """Returns `blanks` of each text: for each blank a list of {word, probability}, most probable first."""
    names = {token: source.tokenizer.backend.id_to_token(token) for ids, _ in decoded for token in ids.ravel().tolist()}
    known = [token for token, name in names.items() if name is not None]
    # Special tokens are named; word pieces keep their prefix.
    texts = source.tokenizer.decode_batch([[token] for token in known])
    words = {token: text.strip() or str(names[token]) for token, text in zip(known, texts, strict=True)}
    return [
        {
            "blanks": [
                [
                    {"word": words.get(token, f"(id {token})"), "probability": probability}
                    for token, probability in zip(row.tolist(), chances.tolist(), strict=True)
                ]
                for row, chances in zip(ids, probabilities, strict=True)
            ]
        }
        for ids, probabilities in decoded
    ]
