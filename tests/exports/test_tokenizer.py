"""White space in a text only separates words in the tokenizer of an exported model of words."""

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.exports.tokenizer import tokenizer_files
from framework.published.kinds import TOKEN_CLASSIFICATION
from tests.support.exports.small_exports import CONFIGS

WORDS = ["Anna", "met", "Müller"]
TEXT = "Anna  met\t\r\nMüller "


def byte_level(folder):
    training = ByteLevelBpeTraining(300)
    return training.train(WordCounts(training.count([" ".join(WORDS)] * 9)), folder)


def metaspace(folder):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"▁{word}" for word in WORDS), "▁", *WORDS]
    backend = Backend(models.Unigram([(token, -float(index)) for index, token in enumerate(tokens)], 3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(tokens[:5])
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_whitespace_only_separates_words(make, tmp_path):
    files = tokenizer_files(CONFIGS["roberta"], TOKEN_CLASSIFICATION.name, {}, make(tmp_path))
    backend = Backend.from_str(files["tokenizer.json"])
    as_words = backend.encode(WORDS, is_pretokenized=True)
    actual = backend.encode(TEXT)
    assert actual.ids == as_words.ids == backend.encode(" ".join(WORDS)).ids
    # Offsets are those of the words; no token covers the white space between them.
    starts = [start for start, _ in actual.offsets[1:-1]]
    stops = [stop for _, stop in actual.offsets[1:-1]]
    assert (starts[0], stops[-1]) == (0, 18) and {6, 9, 12} & {*starts, *stops} == {6, 9, 12}
    assert "".join(TEXT[start:stop] for start, stop in dict.fromkeys(actual.offsets)) == "AnnametMüller"
