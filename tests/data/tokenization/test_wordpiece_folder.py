"""A folder with vocab.txt is read as `BertTokenizer` of transformers reads it: ids of random folders and texts."""

import json
import random

import pytest
from transformers import BertTokenizer

from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import DataError

SPECIALS = ("pad", "unk", "cls", "sep", "mask")
PIECES = ["good", "film", "cafe", "café", "mo", "##chte", "möchte", "天", "气", "##气", "天气", "Good", "e\u0301"]
PIECES += ["\u2028", "ﬁne", "##s", "!", "don", "'", "t", "İ", "i", "##x"]
WORDS = [
    "good",
    "Good",
    "film",
    "films",
    "Café",
    "möchte",
    "天气",
    "mochte",
    "e\u0301",
    "İ",
    "don't",
    "ﬁne!",
    "\u2028",
    "x",
]
WORDS += ["[SEP]", "<entity>", "ENTITY2", "entity2", "\u0085", "plus\u00a0good", "\x00", "goods", "天气s"]


def write_folder(folder, draw):
    """Writes a random folder: lines, flags, names of special tokens and added tokens."""
    folder.mkdir()
    named = {}
    specials = [f"[{name.upper()}]" for name in SPECIALS]
    if draw.random() < 0.5:
        specials = [f"<{name}>" for name in SPECIALS]
        named = {f"{name}_token": f"<{name}>" for name in SPECIALS}
    # A token that occurs twice leaves a gap among the ids, which transformers fills with added tokens.
    pieces = draw.sample(PIECES, k=draw.randint(10, len(PIECES)))
    tokens = [*specials, *pieces]
    draw.shuffle(tokens)
    end = draw.choice(["\n", "\r\n"])
    (folder / "vocab.txt").write_bytes((end.join(tokens) + draw.choice(["", end])).encode())
    config = {key: draw.random() < 0.5 for key in ("do_lower_case", "tokenize_chinese_chars") if draw.random() < 0.7}
    if draw.random() < 0.7:
        config["strip_accents"] = draw.choice([True, False, None])
    size = len(tokens)
    if draw.random() < 0.5:
        config["added_tokens_decoder"] = {str(size): {"content": "ENTITY2", "normalized": draw.random() < 0.5}}
    elif draw.random() < 0.5:
        (folder / "added_tokens.json").write_text(json.dumps({"ENTITY2": size, "plus": size + 1}))
    if draw.random() < 0.5 and "added_tokens_decoder" not in config:
        named["additional_special_tokens"] = ["<entity>"]
        (folder / "special_tokens_map.json").write_text(json.dumps(named))
    else:
        config |= named
    if config or draw.random() < 0.5:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_random_folders_give_the_ids_of_transformers(tmp_path):
    draw = random.Random(0)
    for number in range(60):
        folder = tmp_path / str(number)
        write_folder(folder, draw)
        ours, theirs = Tokenizer.from_folder(folder), BertTokenizer.from_pretrained(folder)
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(0, 8))) for _ in range(20)]
        expected = theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert [ids.tolist() for ids in ours.encode_batch(texts)] == expected, folder
        assert ours.backend.get_vocab() == theirs.get_vocab()
        assert ours.special_ids.tolist() == sorted(set(theirs.all_special_ids))


def test_a_line_ends_at_a_line_feed_only(tmp_path):
    (tmp_path / "vocab.txt").write_text(
        "[PAD]\n\u2028\n\x85\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nfilm\n", encoding="utf-8"
    )
    (ids,) = Tokenizer.from_folder(tmp_path).encode_batch(["good film"])
    assert ids.tolist() == [7, 8]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, ["cafe", "mochte"]),
        ({"strip_accents": False}, ["café", "möchte"]),
        ({"do_lower_case": False}, ["Café", "möchte"]),
        ({"do_lower_case": False, "strip_accents": True}, ["Cafe", "mochte"]),
    ],
)
def test_accents_follow_the_folder(config, expected, tmp_path):
    words = ["cafe", "café", "Cafe", "Café", "mochte", "möchte"]
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (ids,) = Tokenizer.from_folder(tmp_path).encode_batch(["Café möchte"])
    assert ids.tolist() == [5 + words.index(word) for word in expected]


def test_tokenizer_config_overrides_tokenizer_json_as_in_transformers(tmp_path):
    words = ["cafe", "café", "Cafe", "Café"]
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "whole")
    config = json.loads((tmp_path / "whole/tokenizer_config.json").read_text()) | {"do_lower_case": False}
    (tmp_path / "whole/tokenizer_config.json").write_text(json.dumps(config))
    expected = BertTokenizer.from_pretrained(tmp_path / "whole")("Café", add_special_tokens=False)["input_ids"]
    assert expected == [8]
    assert Tokenizer.from_folder(tmp_path / "whole").encode_batch(["Café"])[0].tolist() == expected


def test_an_unknown_token_of_another_name(tmp_path):
    (tmp_path / "vocab.txt").write_text("<pad>\n<unk>\n<s>\n</s>\n<mask>\ngood\n")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode_batch(["good zzz"])[0].tolist() == [5, tokenizer.unk_id]


def test_an_invalid_flag(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": "no"}')
    with pytest.raises(DataError, match=r"do_lower_case='no'\. It must be true, false or null"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"])
def test_each_file_that_changes_ids_changes_the_fingerprint(tmp_path, name):
    settings = {
        "added_tokens.json": {"goods": 7},
        "special_tokens_map.json": {"cls_token": "[SEP]"},
        "tokenizer_config.json": {"do_lower_case": False},
    }
    for folder in (tmp_path / "plain", tmp_path / "changed"):
        folder.mkdir()
        (folder / "vocab.txt").write_text("\n".join([*(f"[{each.upper()}]" for each in SPECIALS), "good", "##s"]))
    plain = Tokenizer.from_folder(tmp_path / "plain")
    (tmp_path / "changed" / name).write_text(json.dumps(settings[name]))
    changed = Tokenizer.from_folder(tmp_path / "changed")
    ids = [(each.cls_id, each.encode_batch(["Goods goods"])[0].tolist()) for each in (plain, changed)]
    assert ids[0] != ids[1] and plain.fingerprint != changed.fingerprint
