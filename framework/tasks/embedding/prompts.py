"""Prompts: a text before each query, and another one before each document (E5, Wang et al. 2022, arXiv:2212.03533)."""

from collections.abc import Mapping, Sequence

import numpy as np

from framework.data.layout import Layout, lay_out
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.tasks.explanation import TextSpan, TokenSpans

SIDES = ("query", "document")


def check_prompts(prompts: Mapping[str, str]) -> None:
    """Checks the names of prompts.

    Raises:
        ConfigError: A name is unknown.
    """
    unknown = sorted(prompts.keys() - set(SIDES))
    if unknown:
        raise ConfigError(
            f"task.prompts has the side {unknown[0]!r}. Prompts are for the sides {' and '.join(SIDES)}. Correct it."
        )


class PromptedLayout:
    """Layout of texts with the prompts of their sides (`framework.tasks.embedding.features.LayOut`).

    Args:
        prompts: Prompt by side; a side without one has none.
    """

    def __init__(self, prompts: Mapping[str, str]) -> None:
        check_prompts(prompts)
        self.prompts = [prompts.get(side, "") for side in SIDES]

    def __call__(
        self, texts: Sequence[str], is_document: np.ndarray, tokenizer: Tokenizer, max_length: int
    ) -> tuple[Layout, Mapping[str, np.ndarray]]:
        """Lays out the texts. The tokens of a prompt count in `max_length` and in the pooling.

        Raises:
            ConfigError: A prompt leaves no room for a text.
        """
        lengths = [len(ids) for ids in tokenizer.encode_batch(self.prompts)]
        for side, prompt, length in zip(SIDES, self.prompts, lengths, strict=True):
            if length + 2 >= max_length:
                raise ConfigError(
                    f"task.prompts.{side} is {prompt!r}, which has {length} tokens, and task.max_length is "
                    f"{max_length}. The prompt, two special tokens and at least one token of the text must fit. "
                    "Shorten the prompt, or raise task.max_length."
                )
        prompted = [self.prompts[int(side)] + text for text, side in zip(texts, is_document, strict=True)]
        return lay_out(prompted, None, tokenizer, max_length), {}


def without_prompts(located: TokenSpans, texts: Mapping[str, str], prompts: Mapping[str, str]) -> TokenSpans:
    """Returns the spans of tokens in texts, given those in the texts behind their prompts.

    Args:
        located: Spans with prompts.
        texts: Texts without prompts, by field.
        prompts: Prompt of each text, by field.
    """

    def moved(span: TextSpan) -> TextSpan:
        size = len(prompts[span.field])
        return TextSpan(span.field, max(span.start - size, 0), span.end - size)

    spans = {index: moved(span) for index, span in located.spans.items() if span.end > len(prompts[span.field])}
    return TokenSpans(texts, spans, located.tokens, [moved(span) for span in located.cut])
