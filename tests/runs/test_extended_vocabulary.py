"""Starting weights with rows for new tokens, and the refusal of tokenizers that do not extend the old one."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from framework.config.schema import TokenizerConfig
from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.extension import pieces_of_new_tokens
from framework.data.tokenization.extension_training import VocabularyExtension
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.errors import ConfigError
from framework.published.pretrained import load_pretrained
from framework.runs.build import build_tokenizer, extend_vocabulary

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OLD = [*SPECIALS, "[unused0]", "a", "b", "##b", "##c", "c"]
"""Ids 6 to 10: a, b, ##b, ##c, c."""


def tokenizer(folder: Path, tokens: list[str], **config: object) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **config}))
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A published BertForMaskedLM with 13 rows, of which 11 have a token."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.BertForMaskedLM(config)
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(folder)
    tokenizer(folder, OLD)
    return folder


def test_new_rows_are_the_mean_of_the_rows_of_their_old_pieces(checkpoint, tmp_path):
    weights = load_pretrained(str(checkpoint))
    tokens = [*OLD[:5], "cb", *OLD[6:], "abc", "##bc", "cc", "zz"]
    added = {"added_tokens_decoder": {"15": {"content": "c b-"}}}
    extended = extend_vocabulary(weights, tokenizer(tmp_path, tokens, **added))
    pieces = {5: [10, 8], 11: [6, 8, 9], 12: [8, 9], 13: [10, 9], 14: OLD[6:], 15: [10, 7]}
    pieces[14] = [6, 7, 8, 9, 10]  # without pieces: the mean of all words
    assert extended.config == replace(weights.config, vocab_size=16)
    for table, old in (
        (extended.encoder, weights.encoder["embeddings.word_embeddings.weight"]),
        (extended.heads, weights.heads["mlm.decoder.bias"]),
    ):
        new = table["embeddings.word_embeddings.weight" if table is extended.encoder else "mlm.decoder.bias"]
        assert len(new) == 16
        expected = {index: old[index] for index in (*range(5), *range(6, 11))}
        expected |= {index: old[ids].mean(0) for index, ids in pieces.items()}
        torch.testing.assert_close(new, torch.stack([expected[index] for index in range(16)]))
    assert extended.changes == (
        "new tokens: 6, their rows start as the mean of the rows of their old pieces, 1 without pieces start as the "
        "mean of all words",
    )


@pytest.mark.parametrize(
    ("tokens", "config", "message"),
    [
        ([*OLD[:7], "c", *OLD[8:10], "b", "d"], {}, r"has 'c' at id 7, where the tokenizer in .* has 'b'\. .* id 10"),
        (OLD[:9], {}, "has no token at id 9, where the tokenizer in .* has '##c'"),
        ([*OLD[:5], "a", *OLD[6:]], {}, "has no token at id 5"),
        (OLD, {}, r"has no token that the one in .* lacks\. .* Set extend_vocabulary=false"),
        ([*OLD, "d"], {"do_lower_case": False}, r"has normalizer=.*'lowercase': False.*, but the tokenizer in"),
    ],
)
def test_a_tokenizer_that_is_no_extension_is_refused(tokens, config, message, checkpoint, tmp_path):
    weights = load_pretrained(str(checkpoint))
    with pytest.raises(ConfigError, match=message):
        extend_vocabulary(weights, tokenizer(tmp_path, tokens, **config))


def test_weights_without_a_tokenizer_cannot_be_extended(checkpoint, tmp_path):
    weights = replace(load_pretrained(str(checkpoint)), tokenizer_dir=None)
    with pytest.raises(ConfigError, match=r"contains no tokenizer\. .* Add the files of the old tokenizer"):
        extend_vocabulary(weights, tokenizer(tmp_path, [*OLD, "d"]))


def test_without_the_key_new_tokens_are_refused_with_a_remedy_that_works(checkpoint, tmp_path):
    weights = load_pretrained(str(checkpoint))
    new = tokenizer(tmp_path, [*OLD, "abc", "cb"])  # as many ids as the weights have rows
    settings = TokenizerConfig(path=str(new.folder))
    with pytest.raises(ConfigError, match=re.escape("set extend_vocabulary=true")):
        build_tokenizer(settings, weights)
    assert extend_vocabulary(weights, build_tokenizer(settings, weights, True)).config.vocab_size == 13


def test_words_that_the_vocabulary_splits_most_often_are_added(tmp_path):
    old = tokenizer(tmp_path / "old", OLD)
    training = VocabularyExtension(str(old.folder), new_tokens=2, min_count=2)
    # Saved pieces: abc 3 * 2, cb 4 * 1, abb 2 * 2; acc occurs once, 77 has no letter.
    counts = training.count(["ABC abc, abc cb cb cb", "cb abb abb acc 77 77 b b b"])
    new = training.train(WordCounts(counts), tmp_path / "new", ("[EMAIL]",))
    ids = {token: new.backend.token_to_id(token) for token in ("abc", "abb", "cb", "[EMAIL]")}
    assert ids == {"abc": 11, "abb": 12, "cb": None, "[EMAIL]": 13}
    assert pieces_of_new_tokens(old, new) == {11: [6, 8, 9], 12: [6, 8, 8], 13: []}
    peer = transformers.AutoTokenizer.from_pretrained(new.folder)
    assert peer("abc a abb", add_special_tokens=False)["input_ids"] == [11, 6, 12]
    assert new.encode_batch(["abc a abb"])[0].tolist() == [11, 6, 12]


def test_words_of_a_byte_level_vocabulary_are_added(tmp_path):
    base = ByteLevelBpeTraining(270)
    old = base.train(WordCounts(base.count(["low lower lows"])), tmp_path / "old")
    training = VocabularyExtension(str(old.folder), new_tokens=1, min_count=1)
    new = training.train(WordCounts(training.count(["newest newest"])), tmp_path / "new")
    (ids,) = new.encode_batch([" newest lower"])
    assert ids[0] == old.vocab_size and ids[1:].tolist() == old.encode_batch([" lower"])[0].tolist()
    assert pieces_of_new_tokens(old, new) == {old.vocab_size: old.encode_batch([" newest"])[0].tolist()}
    peer = transformers.AutoTokenizer.from_pretrained(new.folder)
    assert peer(" newest lower", add_special_tokens=False)["input_ids"] == ids.tolist()
    assert sorted(peer(" newest")) == ["attention_mask", "input_ids"]
