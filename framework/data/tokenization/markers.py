"""Marks that tell a model on which side of a search a text is, and the tokens that documents leave out of a score."""

import string

import numpy as np

from framework.data.tokenization.tokenizer import Tokenizer

PUNCTUATION = (*string.punctuation, *"，。！？；：、“”‘’（）《》〈〉「」『』【】…—·～")
"""Punctuation marks; the ASCII ones are those that ColBERT leaves out."""


def marker_id(marker: str, tokenizer: Tokenizer) -> int | None:
    """Returns the id of a marker that is a token which texts never contain, such as "[unused0]"; otherwise None.

    Such a marker, with or without its outer spaces, is inserted after the first special token. Any other marker is a
    text before the text.

    Args:
        marker: Marker, such as "[unused0]" or "[Q] ".
        tokenizer: Tokenizer of the model.
    """
    ids = (tokenizer.backend.token_to_id(each) for each in (marker, marker.strip()) if each)
    found = next((each for each in ids if each is not None), None)
    return None if found is None or tokenizer.encode_batch([marker])[0].tolist() == [found] else found


def punctuation_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the punctuation marks that are tokens of the vocabulary, with their ids."""
    ids = {mark: tokenizer.backend.token_to_id(mark) for mark in PUNCTUATION}
    return {mark: token_id for mark, token_id in ids.items() if token_id is not None}


def is_punctuation(input_ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Returns (tokens,) bool, True for the tokens of `punctuation_tokens`."""
    return np.isin(input_ids, [*punctuation_tokens(tokenizer).values()])
