"""Decoded targets and their BLEU and chrF scores."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from framework.batch import IGNORE_INDEX
from framework.errors import ConfigError

BLEU_TOKENS = ("13a", "intl", "zh", "char", "ja-mecab", "ko-mecab", "none")

_UNSPACED_SHARE, _KANA_SHARE = 0.25, 0.05


@dataclass(frozen=True, slots=True)
class DecodedTarget:
    """Best target of a search.

    Attributes:
        tokens: Token ids, special tokens included.
        score: Score of the hypothesis, as defined in `framework.tasks.translation.search`.
    """

    tokens: tuple[int, ...]
    score: float


def decode_targets(tokens: Tensor, scores: Tensor) -> list[DecodedTarget]:
    """Converts search results to Python objects.

    Args:
        tokens: (sequences, longest target) int64, padded with IGNORE_INDEX.
        scores: (sequences,) fp32.
    """
    return [
        DecodedTarget(tuple(token for token in row if token != IGNORE_INDEX), score)
        for row, score in zip(tokens.tolist(), scores.tolist(), strict=True)
    ]


def bleu_tokens_of(references: Sequence[str]) -> str:
    """Returns the BLEU tokenization for the language of the references.

    It is "zh" for Chinese, "char" for Japanese, Thai, Lao, Khmer and Burmese, which also have no spaces, and "13a" for
    all other languages.
    """
    letters = Counter(_script(character) for text in references for character in text if character.isalpha())
    num_unspaced = letters["char"] + letters["zh"]
    if num_unspaced <= _UNSPACED_SHARE * letters.total():
        return "13a"
    # Japanese also contains Chinese characters.
    return "char" if letters["char"] > _KANA_SHARE * num_unspaced else "zh"


def _script(character: str) -> str:
    name = unicodedata.name(character, "")
    if name.startswith(("CJK", "BOPOMOFO")):
        return "zh"
    return "char" if name.startswith(("HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")) else "13a"


def check_bleu_tokens(name: str) -> None:
    """Checks that the installed sacrebleu supports a tokenization.

    Raises:
        ConfigError: A library that the tokenization requires is not installed.
    """
    import sacrebleu

    try:
        sacrebleu.BLEU(tokenize=name)
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"bleu_tokens is {name}, which requires a library that is not installed ({' '.join(str(error).split())}). "
            "sacrebleu cannot tokenize without it. Install the library, or choose char."
        ) from error


def corpus_scores(texts: Sequence[str], references: Sequence[str], bleu_tokens: str) -> dict[str, float]:
    """Returns corpus `bleu` (Papineni et al. 2002) and corpus `chrf` (Popovic 2015), both in [0, 100].

    Both use the defaults of sacrebleu (Post 2018, arXiv:1804.08771): case-sensitive BLEU with exponential smoothing,
    and chrF2 with character n-grams up to 6 and no word n-grams.

    Args:
        texts: Predicted translations.
        references: One reference per translation.
        bleu_tokens: sacrebleu's name of the BLEU tokenization.
    """
    # Imported here because prediction, and training without evaluation, do not need sacrebleu.
    import sacrebleu

    return {
        "bleu": float(sacrebleu.corpus_bleu(texts, [references], tokenize=bleu_tokens).score),
        "chrf": float(sacrebleu.corpus_chrf(texts, [references]).score),
    }


def sentence_scores(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """Returns the chrF of each text, in [0, 1], computed by sacrebleu's `sentence_chrf` with its defaults."""
    import sacrebleu

    pairs = zip(texts, references, strict=True)
    return [float(sacrebleu.sentence_chrf(text, [reference]).score) / 100 for text, reference in pairs]
