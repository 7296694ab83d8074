"""From found ids to text, and how near the texts of a split are to their references."""

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
class FoundTarget:
    """What is kept of a search.

    Attributes:
        tokens: Ids, special ones included.
        score: Of `framework.tasks.translation.search`.
    """

    tokens: tuple[int, ...]
    score: float


def decode_targets(tokens: Tensor, scores: Tensor) -> list[FoundTarget]:
    """Brings what was found to the host.

    Args:
        tokens: (sequences, most tokens) int64, IGNORE_INDEX behind the end.
        scores: (sequences,) fp32.
    """
    return [
        FoundTarget(tuple(token for token in row if token != IGNORE_INDEX), score)
        for row, score in zip(tokens.tolist(), scores.tolist(), strict=True)
    ]


def bleu_tokens_of(references: Sequence[str]) -> str:
    """Returns the tokenization of BLEU for the language of these texts.

    "zh" for Chinese; "char" for Japanese, Thai, Lao, Khmer and Burmese, which also have no spaces; else "13a".
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
    """Checks that sacrebleu supports a tokenization here.

    Raises:
        ConfigError: A library is missing.
    """
    import sacrebleu

    try:
        sacrebleu.BLEU(tokenize=name)
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"bleu_tokens is {name}, for which sacrebleu lacks a library ({' '.join(str(error).split())}). Install it, "
            "or choose char."
        ) from error


def corpus_scores(texts: Sequence[str], references: Sequence[str], bleu_tokens: str) -> dict[str, float]:
    """`bleu` (Papineni et al. 2002) and `chrf` (Popovic 2015), both of the whole corpus and in [0, 100].

    The defaults of sacrebleu (Post 2018, arXiv:1804.08771): BLEU with case kept and exponential smoothing;
    chrF2 of 6 characters and no words.

    Args:
        texts: What was found.
        references: One for each.
        bleu_tokens: Tokenization of BLEU, by sacrebleu's name.
    """
    # Not at the top: predicting and training without evaluation do not need it.
    import sacrebleu

    return {
        "bleu": float(sacrebleu.corpus_bleu(texts, [references], tokenize=bleu_tokens).score),
        "chrf": float(sacrebleu.corpus_chrf(texts, [references]).score),
    }


def sentence_scores(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """How near each text is by itself: chrF, in [0, 1], as sacrebleu's `sentence_chrf` has it by default."""
    import sacrebleu

    pairs = zip(texts, references, strict=True)
    return [float(sacrebleu.sentence_chrf(text, [reference]).score) / 100 for text, reference in pairs]
