"""Natural text from tokens, in English, German, French, Chinese and Japanese."""

from pathlib import Path

import pytest

from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.written_text import join_word_pieces, join_words
from framework.tasks.token_classification.text_units import split_units

TEXTS = [
    "Don't say that it's over: we'll see, won't we?",
    "I'd've said \"yes\", but he wasn't there (or so they're telling us).",
    "The dogs' owner – a well-known man – paid $5.50, i.e. 1,250,000 yen!",
    "He said 'hello' to Peter's friends at 12:30 o'clock.",
    "He's O'Brien's son; rock'n'roll from the '90s; see http://example.org/a_b.",
    "AT&T and Smith & Sons, high- and low-level C++ at 100% -- or not...",
    "Two men, who can't swim, are in the U.S. Army #1.",
    "Peter sagte: „Das ist's“, und ging zu Fuß.",
    "L'homme qu'il a vu aujourd'hui n'est pas l'ami d'Anne.",
    "我不知道，他说：“你好！”（真的）",
    "我们在2020年5月用Python写了3.5万行代码。",
    "東京は日本の首都です。",
    "서울은 한국의 수도이다. 그렇죠?",
    "Straße 5/7, 3–0, user@example.org, e-mail",
]


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_joined_as_they_were_written(text: str):
    assert join_words([unit.text for unit in split_units(text, "words")]) == text


def test_tokens_of_corpora_are_joined():
    assert join_words(["We", "do", "n't", "know", ";", "it", "'s", "over", "."]) == "We don't know; it's over."
    assert join_words(["他", "喜", "欢", "Bern", "。"]) == "他喜欢Bern。"
    assert join_words([]) == ""


def test_pieces_of_words_are_joined():
    assert join_word_pieces(["##a", "b", "##c", ",", "d", "##e"], "##") == "##a bc, de"


@pytest.mark.parametrize("text", ["We don't know.", "他说：“你好！”", "It's 3.5%, isn't it?"])
def test_a_tokenizer_returns_the_text(tmp_path: Path, text: str):
    letters = sorted({unit.text for unit in split_units(text, "words")})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokenizer = Tokenizer.from_folder(tmp_path)
    (ids,) = tokenizer.encode_batch([text])
    # A model may have more scores than the vocabulary has tokens.
    token_ids = [tokenizer.cls_id, *ids.tolist(), tokenizer.vocab_size + 7, tokenizer.sep_id]
    assert tokenizer.decode_batch([token_ids]) == [text]
