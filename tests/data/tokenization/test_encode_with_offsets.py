"""Offsets of tokens in the original text, whatever the normalizer changed."""

import pytest
from tokenizers import normalizers

from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "the", "##s", "黑", "豹", "is", "x"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("the Cafés x", ["the", "Café", "s", "x"]),
        # The accent is a separate character and is removed.
        ("CAFE\u0301 x", ["CAFE", "x"]),
        ("x黑豹 x", ["x", "黑", "豹", "x"]),
        ("\u200b\u200bİS\u00a0 x", ["İS", "x"]),
        ("😀 x 𝔸 the", ["😀", "x", "𝔸", "the"]),
        ("", []),
    ],
)
def test_each_token_is_located_in_the_original_text(tokenizer, text, pieces):
    ((ids, starts, ends),) = tokenizer.encode_with_offsets([text])
    assert [text[start:end] for start, end in zip(starts, ends, strict=True)] == pieces
    assert ids.tolist() == tokenizer.encode_batch([text])[0].tolist()


def test_texts_keep_their_order(tokenizer):
    encoded = tokenizer.encode_with_offsets(["x the", "", "is"])
    assert [starts.tolist() for _, starts, _ in encoded] == [[0, 2], [], [0]]
    assert [len(ids) for ids, _, _ in encoded] == [2, 0, 1]


def test_byte_level_tokens_of_one_character_share_its_offsets(tmp_path):
    training = ByteLevelBpeTraining(vocab_size=270)
    training.train(WordCounts(training.count(["the cafe"])), tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert not isinstance(tokenizer.backend.normalizer, normalizers.BertNormalizer)
    text = "é 黑x"
    ((_, starts, ends),) = tokenizer.encode_with_offsets([text])
    # Two bytes, a space that may be a token or begin one, three bytes, one.
    assert {(0, 1)} == set(zip(starts[:2].tolist(), ends[:2].tolist(), strict=True))
    assert list(zip(starts[-4:].tolist(), ends[-4:].tolist(), strict=True)) == [*[(2, 3)] * 3, (3, 4)]
