import gzip
import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.sentence_encoder import SentenceEncoder
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import GivenTokenizer, VocabularyTraining
from framework.data.tokenization.word_counts import WordCounts, repeated
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import ConfigError, DataError
from tests.support.real_data import needs_real_data, real_data

TEXTS = [
    "The small cat sat on the mat, and the cats sat down.",
    "Small dogs and cats play; playing is fun!",
    "今天天气好。Café naïve 5% 😀",
] * 4
KINDS = [WordPieceTraining(vocab_size=120), ByteLevelBpeTraining(vocab_size=340)]
WORDPIECE_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train(training: VocabularyTraining, texts: list[str], folder: Path) -> Tokenizer:
    return training.train(WordCounts(training.count(texts)), folder)


def tokens_in_order(tokenizer: Tokenizer) -> list[str]:
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    return sorted(vocabulary, key=lambda token: vocabulary[token])


@pytest.fixture(scope="module", params=KINDS, ids=["wordpiece", "byte_level_bpe"])
def trained(request, tmp_path_factory) -> Tokenizer:
    return train(request.param, TEXTS, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def real_texts() -> dict[str, list[str]]:
    with gzip.open(real_data("pretrain/wikitext2_valid.txt.gz"), "rt", encoding="utf-8") as file:
        english = [line for line in file if len(line) > 200][:400]
    with gzip.open(real_data("topic/zh_thucnews_10k_a.txt.gz"), "rt", encoding="utf-8") as file:
        titles = [line.split("\t")[0] for line in file]
    # Without the spaces within titles: "words" as long as in Chinese text.
    chinese = ["，".join(titles[first : first + 8]).replace(" ", "") for first in range(0, 2400, 8)]
    return {"english": english, "chinese": chinese}


def test_wordpiece_by_hand(tmp_path):
    """a + ##b occurs 3 times, c + ##d twice; the order is special tokens, characters, inner characters, merges."""
    expected = [*WORDPIECE_SPECIALS, "a", "b", "c", "d", "##b", "##d", "ab", "cd"]
    for size in (13, 12):
        tokenizer = train(WordPieceTraining(size), ["AB ab cd", "ab\ncd b d"], tmp_path / str(size))
        assert tokens_in_order(tokenizer) == expected[:size]


def test_wordpiece_special_ids_are_the_first(tmp_path):
    tokenizer = train(KINDS[0], TEXTS, tmp_path)
    assert tokens_in_order(tokenizer)[:5] == WORDPIECE_SPECIALS
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 3, 4)
    (ids,) = tokenizer.encode_batch(["The CAT sat, Cafe 天"])
    assert tokenizer.backend.decode(ids.tolist()) == "the cat sat, cafe 天"


def test_case_and_accents_can_be_kept(tmp_path):
    tokenizer = train(WordPieceTraining(120, lowercase=False), TEXTS, tmp_path)
    assert {"C", "ï"} <= set(tokens_in_order(tokenizer))
    assert "ï" not in tokens_in_order(train(KINDS[0], TEXTS, tmp_path / "folded"))


def test_rare_characters_are_excluded(tmp_path):
    tokenizer = train(WordPieceTraining(20, alphabet=2), ["aaa bb c"], tmp_path)
    assert tokenizer.backend.encode("a b c").tokens[1:-1] == ["a", "b", "[UNK]"]


def test_of_equally_frequent_characters_the_smaller_are_kept(tmp_path):
    tokenizer = train(WordPieceTraining(20, alphabet=2), ["b a c c"], tmp_path)
    assert tokens_in_order(tokenizer) == [*WORDPIECE_SPECIALS, "a", "c"]


def test_wordpiece_counts_no_word_that_would_be_unknown():
    assert WordPieceTraining().count(["x" * 101 + " " + "y" * 100]) == {"y" * 100: 1}


def test_byte_level_by_hand(tmp_path):
    """Words: " ab" 3 times, "," and " ba" once. Space + a: 3, a + b: 3, b + a: 1, space + b: 1.

    Of the two pairs that occur 3 times, the one with the smaller ids is first: a is 69 and the space 225, so (a, b).
    Then space + ab, 3 times; then (b, a) with ids 70 and 69 once, and space + ba once.
    """
    tokenizer = train(ByteLevelBpeTraining(265), ["ab ab,", "ab\nba"], tmp_path)
    tokens = tokens_in_order(tokenizer)
    assert tokens[:5] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    # The 94 visible characters of ASCII are themselves; the other 162 bytes are represented by later characters.
    assert tokens[5:99] == [chr(code) for code in range(33, 127)]
    assert tokens[261:] == ["ab", "Ġab", "ba", "Ġba"]
    assert (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines() == [
        "#version: 0.2",
        "a b",
        "Ġ ab",
        "b a",
        "Ġ ba",
    ]
    ids = (tokenizer.cls_id, tokenizer.pad_id, tokenizer.sep_id, tokenizer.unk_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 3, 4)
    assert tokenizer.backend.encode(" ab").ids == [0, 262, 2]


def test_byte_level_words_are_counted_in_bytes_and_limited_in_length():
    # 300 copies of 好 are the bytes E5 A5 BD; the space before them makes 901.
    counts = ByteLevelBpeTraining().count(["好" * 300])
    assert sum(len(word) * count for word, count in counts.items()) == 901
    assert max(map(len, counts)) == 256 and sum(counts.values()) == 4


def test_byte_level_encodes_every_text(tmp_path):
    tokenizer = train(KINDS[1], ["plain words only"], tmp_path)
    texts = [" 😀👩‍👩‍👧 今天", " \u0000\u007f\ue000\U0010ffff", " ɐʇǝ <mask> <unk> \x85", " नमस्ते สวัสดี"]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert not np.isin(ids, tokenizer.special_ids).any()
        assert tokenizer.backend.decode(ids.tolist()) == text


@needs_real_data
@pytest.mark.parametrize("language", ["english", "chinese"])
def test_byte_level_merges_equal_those_of_the_published_trainer(real_texts, language, tmp_path):
    """Here `tokenizers` trains on the texts themselves, with a space before each, as sentences are encoded."""
    texts = real_texts[language]
    published = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    published.train_from_iterator(
        (" " + " ".join(text.split()) for text in texts), vocab_size=1500, min_frequency=0, special_tokens=specials
    )
    ours = train(ByteLevelBpeTraining(1500), texts, tmp_path)
    assert len(tokens_in_order(ours)) == 1500
    assert json.loads(ours.backend.to_str())["model"]["merges"] == json.loads(published.to_str())["model"]["merges"]
    assert ours.backend.get_vocab() == published.get_vocab()


@needs_real_data
@pytest.mark.parametrize("language", ["english", "chinese"])
@pytest.mark.parametrize("kind", KINDS, ids=["wordpiece", "byte_level_bpe"])
def test_real_text_by_word_equals_the_encoded_text(real_texts, language, kind, tmp_path):
    texts = real_texts[language]
    tokenizer = train(type(kind)(vocab_size=3000), texts, tmp_path)
    # Complete texts, and pieces that begin and end within words.
    sentences = [
        " ".join(piece.split()) for text in texts for piece in (text, text[3:50], text[50:64]) if piece.strip()
    ]
    encoder = SentenceEncoder(tokenizer)
    assert encoder._by_word
    ids, lengths = encoder.encode(sentences)
    whole = tokenizer.encode_batch([(" " if tokenizer.space_marked else "") + sentence for sentence in sentences])
    assert ids.tolist() == np.concatenate(whole).tolist()
    assert lengths.tolist() == [len(part) for part in whole]


@pytest.mark.parametrize("kind", KINDS, ids=["wordpiece", "byte_level_bpe"])
def test_training_gives_the_same_bytes_in_every_process(kind, tmp_path):
    """Processes iterate over hash maps in different orders, and here their batches differ too."""
    program = (
        "import pickle, sys; from framework.data.tokenization.word_counts import WordCounts; "
        "training, texts, size = pickle.loads(bytes.fromhex(sys.argv[1])); counts = WordCounts(); "
        "[counts.add(training.count(texts[first:first + size])) for first in range(0, len(texts), size)]; "
        "training.train(counts, sys.argv[2])"
    )
    for name, size in (("1", 1), ("2", 7)):
        given = pickle.dumps((kind, TEXTS, size)).hex()
        command = [sys.executable, "-c", program, given, str(tmp_path / name)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": name, "PYTHONPATH": ":".join(sys.path)})
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "12")
    assert len(first) >= 4 and first == second


def test_transformers_loads_the_trained_tokenizer(trained):
    theirs = AutoTokenizer.from_pretrained(trained.folder)
    texts = [" " + text for text in TEXTS[:3]]
    expected = [ids.tolist() for ids in trained.encode_batch(texts)]
    assert theirs(texts, add_special_tokens=False)["input_ids"] == expected
    ids = (theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id)
    assert ids == (trained.pad_id, trained.unk_id, trained.cls_id, trained.sep_id, trained.mask_id)
    assert len(theirs) == trained.vocab_size
    begin, end = [theirs.cls_token_id], [theirs.sep_token_id]
    # RoBERTa has two separators between the parts of a pair and no segments.
    between = end if not trained.space_marked else 2 * end
    pair = theirs(texts[0], texts[1])
    assert pair["input_ids"] == [*begin, *expected[0], *between, *expected[1], *end]
    if not trained.space_marked:
        assert pair["token_type_ids"] == [0] * (len(expected[0]) + 2) + [1] * (len(expected[1]) + 1)
    masked = theirs(f"{theirs.mask_token} x", add_special_tokens=False)["input_ids"][0]
    assert masked == theirs(f" {theirs.mask_token} x", add_special_tokens=False)["input_ids"][0] == trained.mask_id


def test_counts_of_batches_add_up():
    for kind in KINDS:
        together = WordCounts(kind.count(TEXTS))
        by_batch = WordCounts()
        for text in TEXTS:
            by_batch.add(pickle.loads(pickle.dumps(kind)).count(iter([text])))
        assert dict(by_batch.items()) == dict(together.items())
        assert by_batch.num_words == together.num_words == sum(dict(together.items()).values())
        assert by_batch.num_dropped == 0


def test_with_too_many_words_the_rarest_are_dropped():
    counts = WordCounts(max_words=8)
    counts.add({"a": 5, "b": 4, "c": 3, "d": 2, "e": 2, "f": 2})
    assert len(counts) == 6
    counts.add({"a": 1, "g": 9, "h": 1, "i": 1})
    # 9 words are more than 8, so 6 stay: two of d, e and f, which occur twice.
    held = dict(counts.items())
    assert len(held) == 6 and {"a": 6, "b": 4, "c": 3, "g": 9}.items() <= held.items()
    assert set(held) < set("abcdefg")
    assert (counts.num_words, counts.num_dropped) == (30, 4)


def test_if_words_exceed_the_memory_the_rarest_are_dropped():
    counts = WordCounts(max_characters=100)
    counts.add({"a" * 50: 2, "b" * 30: 3, "c" * 30: 1})
    # 110 characters are more than 100, so at most 75 stay, from the most frequent word on.
    assert dict(counts.items()) == {"b" * 30: 3}
    assert (counts.num_words, counts.num_dropped) == (6, 3)


def test_of_equally_rare_words_a_fair_sample_is_kept():
    words = [f"word{number}" for number in range(4000)]
    rng = np.random.Generator(np.random.Philox(1))
    kept = []
    for order in (words, words[::-1], [words[index] for index in rng.permutation(4000)]):
        counts = WordCounts(max_words=3000)
        counts.add(Counter(["often"] * 3 + order))
        kept.append({word for word, _ in counts.items()})
    assert kept[0] == kept[1] == kept[2]
    assert "often" in kept[0] and 2240 <= len(kept[0]) <= 2250
    # Of 4,000 words 2,249 stay; in each half about half of them: 1,124.5, standard deviation below 22.3.
    first_half = sum(word in kept[0] for word in words[:2000])
    assert abs(first_half - (len(kept[0]) - 1) / 2) < 5 * 22.3


def test_counts_stay_bounded_for_any_input():
    counts = WordCounts(max_words=1000)
    for batch in range(50):
        counts.add({"the": 10, **{f"{batch}-{number}": 1 for number in range(300)}})
        assert len(counts) <= 1000
    held = dict(counts.items())
    assert held["the"] == 500
    assert counts.num_words == 50 * 310 and counts.num_dropped == 50 * 310 - 500 - (len(held) - 1)
    # New words are from the beginning to the end, not only the first or the last.
    assert {word.partition("-")[0] for word in held} >= {str(batch) for batch in range(50)}


def test_very_frequent_words_are_passed_to_the_trainer_in_bounded_number(monkeypatch):
    """A fifth of 30, 20 and 1 occurrences is 6, 4 and none."""
    monkeypatch.setattr("framework.data.tokenization.word_counts._MAX_OCCURRENCES", 11)
    monkeypatch.setattr("framework.data.tokenization.word_counts._REPETITIONS", 5)
    assert list(repeated({"b": 20, "a": 30, "c": 1})) == ["a a a a a ", "a ", "b b b b "]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WordPieceTraining(vocab_size=5), "`vocab_size` is 5, but the special tokens alone are 5"),
        (lambda: WordPieceTraining(alphabet=0), "`alphabet` is 0. It must be at least 1"),
        (lambda: ByteLevelBpeTraining(vocab_size=260), "`vocab_size` is 260, but special tokens and bytes take 261"),
        (lambda: GivenTokenizer(" "), "`path` is empty"),
    ],
)
def test_values_are_checked(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_errors(tmp_path):
    with pytest.raises(
        ConfigError, match="vocab_size is 20, but special tokens and the characters of the text take 53"
    ):
        train(WordPieceTraining(vocab_size=20), TEXTS, tmp_path)
    for kind in KINDS:
        with pytest.raises(DataError, match="hold no words"):
            train(kind, [" ", ""], tmp_path)


def test_a_given_tokenizer_is_loaded(trained):
    assert GivenTokenizer(str(trained.folder)).load().fingerprint == trained.fingerprint
    with pytest.raises(DataError, match="holds no tokenizer"):
        GivenTokenizer("nowhere").load()


@pytest.mark.parametrize("kind", [WordPieceTraining, ByteLevelBpeTraining])
def test_a_size_that_the_text_cannot_fill(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"`vocab_size` is 1,000,000,000\. At most 16,777,216 tokens can be trained"):
        kind(vocab_size=10**9)
    # All that these texts can give, however large the requested size.
    sizes = {train(kind(vocab_size=size), TEXTS, tmp_path / str(size)).vocab_size for size in (2000, 30_000, 2**24)}
    assert len(sizes) == 1
    assert tokens_in_order(train(kind(vocab_size=2**24), TEXTS, tmp_path / "a")) == tokens_in_order(
        train(kind(vocab_size=2000), TEXTS, tmp_path / "b")
    )
