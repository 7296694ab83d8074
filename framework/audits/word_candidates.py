"""Words that an encoder with a masked-word head would write at the places of a text's words.

As in BERT-Attack (Li et al. 2020, arXiv:2004.09984, section 3.2), the encoder reads the unchanged text, so that its
words stay close to the meaning. We depart from it for a word of several tokens: the encoder reads one mask token in
its place, where BERT-Attack ranks combinations of tokens.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from framework.audits.masked_words import masked_word_task
from framework.config.command_schema import TrainedConfig
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError
from framework.modules.inference import Inference
from framework.runs.trained import Trained, build_inference, open_model
from framework.tasks.pretraining.blanks import BlankSource, BlankText

_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+(?:['’][^\W_\u4e00-\u9fff]+)*")
_LONGEST_SEQUENCE = 512

FUNCTION_WORDS = frozenset(
    re.findall(
        r"\S+",
        """
        a about above after again against all am an and any are aren't as at be because been before being
        below between both but by can cannot could did didn't do does doesn't doing don't down during each
        few for from further had has have having he her here hers herself him himself his how i if in into
        is isn't it its itself just me more most my myself never no nor not now of off on once only or other
        our ours ourselves out over own same she should so some such than that the their theirs them
        themselves then there these they this those through to too under until up very was wasn't we were
        what when where which while who whom why will with won't would you your yours yourself
        的 了 是 在 不 没 有 和 与 也 都 就 而 及 着 或 被 把 这 那 我 你 他 她 它 们 一 个 之 吗
        呢 吧 很 到 说 要 会 对
        """,
    )
)
"""Words that attacks neither change nor insert: function words, negations included, which change the meaning."""


@dataclass(frozen=True)
class Words:
    """Words of a text and what stands between them.

    Attributes:
        words: Words in their order; in Chinese each character is a word.
        starts: Character at which each word begins in the original text.
        between: Text before each word, and after the last one.
    """

    words: tuple[str, ...]
    starts: tuple[int, ...]
    between: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Words":
        """Returns the words of a text."""
        found = list(_WORD.finditer(text))
        ends = [0, *(match.end() for match in found)]
        starts = [*(match.start() for match in found), len(text)]
        between = tuple(text[end:start] for end, start in zip(ends, starts, strict=True))
        return cls(tuple(match[0] for match in found), tuple(starts[:-1]), between)

    def with_word(self, index: int, word: str) -> "Words":
        """Returns the text with another word at an index; an empty one removes the word."""
        return replace(self, words=(*self.words[:index], word, *self.words[index + 1 :]))

    @property
    def text(self) -> str:
        """Returns the words joined with what stands between them."""
        pieces = [piece for pair in zip(self.between, (*self.words, ""), strict=True) for piece in pair]
        return "".join(pieces)


def open_masked_words(run: str, runs: str, trust: Sequence[str], top_k: int, key: str) -> Trained:
    """Reads an encoder with a masked-word head.

    Args:
        run: Pre-trained run, its export, or a published model.
        runs: Folder that contains the run folders.
        trust: Modules whose classes the run may name.
        top_k: Number of words for each place.
        key: Config key of the run, for messages.

    Raises:
        ConfigError: The model has no masked-word head.
        CheckpointError: The model does not exist or cannot be read.
    """
    trained = open_model(TrainedConfig(run=run, runs=runs, trust=tuple(trust)))
    task = masked_word_task(trained.task, trained.weights, _LONGEST_SEQUENCE)
    if task is None:
        raise ConfigError(
            f"{key}={run} has no masked-word head. Words are chosen by such a head. Give a pre-trained run, or a "
            "published encoder with its masked-word head."
        )
    task.top_k = top_k
    return replace(trained, task=task)


def word_candidates(
    trained: Trained, inference: Inference, texts: Sequence[Words]
) -> list[Mapping[int, tuple[str, ...]]]:
    """Returns words that fit at the places of words, most probable first. Collective: all ranks must call.

    Args:
        trained: Result of `open_masked_words`.
        inference: Another model on the same devices, whose mesh, precision and budget are used.
        texts: Words of each text.

    Returns:
        For each text a mapping of the index of a word to its candidates, with the capital letters of the word. Function
        words, and words beyond the longest sequence of the encoder, have none.
    """
    task: Any = trained.task
    encoded = [_encode(text, trained.tokenizer, task.sequence_length) for text in texts]
    items = [(index, places, blank) for index, blanks in enumerate(encoded) for places, blank in blanks]
    candidates: list[dict[int, tuple[str, ...]]] = [{} for _ in texts]
    if not items:
        return list(candidates)
    source = BlankSource(
        [blank for _, _, blank in items], trained.tokenizer, task.sequence_length, list(task.loss_weights)
    )
    other = build_inference(
        trained, inference.micro_batch_tokens, inference.precision.name, process_info(), inference.mesh
    )
    for (index, places, _), prediction in zip(items, other.predict(source), strict=True):
        for place, best in zip(places, prediction["blanks"], strict=True):
            words = texts[index].words
            candidates[index][place] = _usable(words[place], [each["word"] for each in best])
    return list(candidates)


def _encode(text: Words, tokenizer: Tokenizer, max_length: int) -> list[tuple[list[int], BlankText]]:
    """Returns sequences with the indices of the words that each of them asks for.

    The first sequence is the unchanged text, for all words of one token. Each word of several tokens has its own.
    """
    (ids, starts, ends) = tokenizer.encode_with_offsets([text.text])[0]
    ids, room = np.asarray(ids, dtype=np.int64), max_length - 2
    single: list[int] = []
    positions: list[int] = []
    several: list[tuple[list[int], BlankText]] = []
    for index, (word, start) in enumerate(zip(text.words, text.starts, strict=True)):
        if word.lower() in FUNCTION_WORDS:
            continue
        tokens = np.flatnonzero((ends > start) & (starts < start + len(word)))
        if not len(tokens) or tokens[-1] >= room:
            continue
        if len(tokens) == 1:
            single.append(index)
            positions.append(int(tokens[0]))
        else:
            hidden = np.concatenate([ids[: tokens[0]], [tokenizer.mask_id], ids[tokens[-1] + 1 :]])
            several.append(([index], _blank(hidden[:room], [int(tokens[0])], tokenizer)))
    return ([(single, _blank(ids[:room], positions, tokenizer))] if single else []) + several


def _blank(ids: np.ndarray, positions: Sequence[int], tokenizer: Tokenizer) -> BlankText:
    inside = np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]]).astype(np.int64)
    return BlankText(inside, np.array(positions, dtype=np.int64) + 1)


def _usable(word: str, candidates: Sequence[str]) -> tuple[str, ...]:
    """Returns the candidates that are other whole words, in the capital letters of the word."""
    kept = []
    for candidate in candidates:
        if not _WORD.fullmatch(candidate) or candidate.lower() == word.lower() or candidate.lower() in FUNCTION_WORDS:
            continue
        is_capital = word[0].isupper()
        changed = candidate.upper() if is_capital and word.isupper() and len(word) > 1 else candidate
        kept.append(changed[0].upper() + changed[1:] if is_capital else changed)
    return tuple(dict.fromkeys(kept))
