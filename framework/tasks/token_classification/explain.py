"""Explanations of entities: the logits of the predicted tags at the words of an entity, and the spans of tokens."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.data.flat_source import FlatSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.metrics.entity_f1 import EntitySpan, entity_spans
from framework.tasks.explanation import Explained, TextSpan, TokenSpans, one_item
from framework.tasks.token_classification.decode import join_parts, predict_tags
from framework.tasks.token_classification.features import Part, encode_words


class EntityLogits(NamedTuple):
    """Logits whose mean is the score of an entity.

    Attributes:
        positions: (words,) token in the sequence of each word.
        tags: (words,) index of its tag.
    """

    positions: tuple[int, ...]
    tags: tuple[int, ...]


def explained_entities(source: FlatSource, decoded: Sequence[np.ndarray], tags: Sequence[str]) -> list[list[Explained]]:
    """Returns the score of each predicted entity: the mean of the logits of its tags at its words.

    The words of an entity in a long text may be predicted by several sequences. The score is then that of the sequence
    that predicts the most of them (the first of equal ones), and the mean is over these words. The name is the type;
    the detail `entity` is the index among the predicted entities of the row.

    Args:
        source: Source of the sequences.
        decoded: (words, labels) log-probabilities of each sequence.
        tags: Tag set in the order of scores.
    """
    examples, scores = join_parts(source.records, decoded)
    starts = _first_words(source.records, decoded)
    items: list[list[int]] = [[] for _ in examples]
    for item, part in enumerate(source.records):
        items[part.row].append(item)
    chosen = []
    for own, path in zip(items, predict_tags(scores, tags), strict=True):
        entities = entity_spans([tags[index] for index in path])
        row = []
        for number, entity in enumerate(entities):
            shared = {item: _overlap(entity, starts[item], len(decoded[item])) for item in own}
            item = max(own, key=lambda each: len(shared[each]))
            words = shared[item]
            positions = np.flatnonzero(one_item(source, item).targets["is_word"].numpy())
            target = EntityLogits(
                tuple(positions[words.start - starts[item] : words.stop - starts[item]].tolist()),
                tuple(path[words.start : words.stop].tolist()),
            )
            row.append(Explained(item, target, entity.label, {"entity": number}))
        chosen.append(row)
    return chosen


def _first_words(parts: Sequence[Part], decoded: Sequence[np.ndarray]) -> list[int]:
    """Returns the index in its example of the first word that each sequence predicts."""
    firsts: list[int] = []
    for index, part in enumerate(parts):
        follows = index > 0 and parts[index - 1].row == part.row
        firsts.append(firsts[-1] + len(decoded[index - 1]) if follows else 0)
    return firsts


def _overlap(entity: EntitySpan, first: int, num_words: int) -> range:
    """Returns the words of an entity among `num_words` words from `first` on."""
    return range(max(entity.start, first), min(entity.stop, first + num_words))


def mean_logits(logits: Tensor, batch: PackedBatch, targets: Sequence[EntityLogits]) -> Tensor:
    """Returns (sequences,) fp32: the mean of the logits of each target.

    Args:
        logits: (tokens, labels).
        batch: Micro-batch of the logits.
        targets: Target of each real sequence.
    """
    counts = torch.tensor([len(each.tags) for each in targets], device=logits.device)
    owners = torch.repeat_interleave(torch.arange(len(targets), device=logits.device), counts)
    positions, tags = (
        torch.tensor([index for each in targets for index in part(each)], device=logits.device)
        for part in (lambda each: each.positions, lambda each: each.tags)
    )
    values = logits.float()[batch.cu_seqlens[owners].long() + positions, tags]
    return values.new_zeros(len(targets)).index_add(0, owners, values) / counts


def locate_words(source: FlatSource, item: int, tokenizer: Tokenizer) -> TokenSpans:
    """Locates the tokens of a sequence, each at its word.

    Args:
        source: Source of the sequences.
        item: Index of the sequence.
        tokenizer: Tokenizer of the model.
    """
    part = source.records[item]
    example, first = part.example, part.first
    length = len(one_item(source, item).input_ids)
    ids_of: Mapping[str, np.ndarray] = encode_words(example.words[first:], tokenizer)
    spans: dict[int, TextSpan] = {}
    token = 1
    for index in range(first, len(example.words)):
        if token >= length - 1:
            break
        # A word that is longer than a sequence is truncated.
        size = min(len(ids_of[example.words[index]]), length - 1 - token)
        if example.text is None:
            span = TextSpan("tokens", index, index + 1)
        else:
            span = TextSpan("text", example.units[index].start, example.units[index].stop)
        spans |= dict.fromkeys(range(token, token + size), span)
        token += size
    texts = {"tokens": example.words} if example.text is None else {"text": example.text}
    return TokenSpans(texts, spans, range(length))
