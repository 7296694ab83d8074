"""Tagged sentences in every format and scheme, and an error with file, sentence and line for every bad one."""

import gzip
import json
from pathlib import Path

import pytest

from framework.data.examples.splits import ReadSplits
from framework.data.facts import skipped_rows
from framework.errors import ConfigError, DataError
from framework.tasks.token_classification.data import TaggedData
from framework.tasks.token_classification.tagged_rows import ConllFormat, TaggedSentence
from tests.support.real_data import needs_real_data, real_data

REAL = real_data("ner")
CONLL = "Ann\tB-person\nLee\tI-person\nwon\tO\n\t\nBonn\tB-place\r\n\nsaid\tO\n"
WORDS = [("Ann", "Lee", "won"), ("Bonn",), ("said",)]
TAGS = [("B-person", "I-person", "O"), ("B-place",), ("O",)]


def write(folder: Path, content: str | bytes, name: str = "train.conll") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_rows(folder: Path, rows: list[object]) -> str:
    return write(folder, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "train.jsonl")


def read(path: str, units: str = "words", **options) -> ReadSplits[TaggedSentence]:
    return TaggedData(path, **options).load(units)


def words_and_tags(corpus: ReadSplits[TaggedSentence], split: str = "train") -> tuple[list, list]:
    sentences = corpus.splits[split]
    return [sentence.words for sentence in sentences], [sentence.tags for sentence in sentences]


def test_columns(tmp_path):
    corpus = read(write(tmp_path, CONLL))
    assert words_and_tags(corpus) == (WORDS, TAGS)
    assert corpus.labels == ("person", "place")
    facts = corpus.facts["train"]
    assert (facts.read, facts.rows, facts.num_skipped, facts.repaired) == (3, 3, 0, 0)


def test_compressed_columns_with_a_byte_order_mark_and_no_end(tmp_path):
    text = "\ufeff-DOCSTART- -X- O\n\n" + CONLL.rstrip("\n")
    path = write(tmp_path, gzip.compress(text.encode()), "train.txt.gz")
    assert words_and_tags(read(path)) == (WORDS, TAGS)


def test_the_columns_of_words_and_tags(tmp_path):
    text = "# id 1\n1  #a  NN O   x\n2 b\t NN B-k x\n-DOCSTART- -X- O O O\n1 c NN O x\n"
    corpus = read(write(tmp_path, text), conll=ConllFormat(word_column=1, tag_column=-2, comment="# "))
    assert words_and_tags(corpus) == ([("#a", "b"), ("c",)], [("O", "B-k"), ("O",)])


def test_tabs_keep_spaces_and_suffixes_are_removed(tmp_path):
    path = write(tmp_path, "10 000\tB-n\n \tO\n")
    assert words_and_tags(read(path, conll=ConllFormat(separator="tab"))) == ([("10 000", " ")], [("B-n", "O")])
    # The first character is a word even if the expression matches it; an ideographic space is no white space here.
    path = write(tmp_path, "科0\tB-n\n312\tO\ne10\tO\n\u30001\tO\n")
    assert words_and_tags(read(path, conll=ConllFormat(word_suffix="[0-9]+")))[0] == [("科", "3", "e", "\u3000")]


def test_lists_of_tokens_and_tags(tmp_path):
    rows = [{"tokens": list(words), "tags": list(tags)} for words, tags in zip(WORDS, TAGS, strict=True)]
    assert words_and_tags(read(write_rows(tmp_path, rows))) == (WORDS, TAGS)


def test_spans_of_texts(tmp_path):
    rows = [
        {"text": "Ann Lee, won", "spans": [{"start": 0, "end": 7, "label": "person", "text": "Ann Lee"}]},
        {"text": "在北京 a", "spans": [{"start": 1, "end": 3, "label": "place"}]},
        {"text": "none", "spans": []},
    ]
    words = [("Ann", "Lee", ",", "won"), ("在", "北", "京", "a"), ("none",)]
    tags = [("B-person", "I-person", "O", "O"), ("O", "B-place", "I-place", "O"), ("O",)]
    assert words_and_tags(read(write_rows(tmp_path, rows))) == (words, tags)
    by_character = read(write_rows(tmp_path, rows[:1]), "characters")
    assert by_character.splits["train"][0].tags == ("B-person", *["I-person"] * 5, *["O"] * 4)


@pytest.mark.parametrize(
    ("scheme", "tags"), [("iob1", "I-x I-x B-x O I-y"), ("bio", "B-x I-x B-x O B-y"), ("bioes", "B-x E-x S-x O S-y")]
)
def test_every_scheme_becomes_bio_by_itself_or_by_name(tmp_path, scheme, tags):
    path = write(tmp_path, "".join(f"w {tag}\n" for tag in tags.split()))
    for given in ("auto", scheme):
        assert words_and_tags(read(path, scheme=given))[1] == [("B-x", "I-x", "B-x", "O", "B-y")]


MIXED = "a B-x\nb I-x\n\nc O\nd I-x\ne B-y\n\nf B-y\n"


def test_a_mix_of_schemes_is_reported_with_its_location(tmp_path):
    path = write(tmp_path, MIXED)
    with pytest.raises(DataError) as raised:
        read(path)
    assert f"{path}, sentence 2 (line 4), line 5: 'I-x' follows 'O'. The scheme bio (the" in str(raised.value)
    assert "set `invalid_tags` to repair" in str(raised.value)


def test_a_mix_is_repaired_as_conlleval_reads_it(tmp_path):
    corpus = read(write(tmp_path, MIXED), invalid_tags="repair")
    assert words_and_tags(corpus)[1] == [("B-x", "I-x"), ("O", "B-x", "B-y"), ("B-y",)]
    assert corpus.facts["train"].repaired == 1


def test_a_mix_is_skipped(tmp_path):
    corpus = read(write(tmp_path, MIXED), on_bad_row="skip")
    assert words_and_tags(corpus)[0] == [("a", "b"), ("f",)]
    (skipped,) = skipped_rows(corpus.facts)
    assert skipped["place"] == "sentence 2 (line 4), line 5"


BAD_COLUMNS = [
    ("a O\nb\nc O\n\n", "sentence 1, line 2: the line has 1 columns. Column 0 must hold the word and column -1"),
    ("\n\na O x\nb o\n\n", "sentence 1 (line 3), line 3: the tag 'x' is invalid"),
    ("a B-\n\n", "sentence 1 (line 1), line 1: the tag 'B-' is invalid"),
    (b"a O\n\xff O\n\n", "line 2: byte 0xff at position 1 is not UTF-8"),
    ("a B-x\nb E-x\nc I-x\n\n", "'I-x' follows 'E-x'. The scheme bioes (the"),
    ("a B-x\nb S-x\n\n", "line 2: 'S-x' follows 'B-x'. The scheme bioes (the"),
    ("c S-x\na B-x\n\n", "line 2: the end of the sentence follows 'B-x'. The scheme bioes"),
]


@pytest.mark.parametrize(("content", "words"), BAD_COLUMNS)
def test_bad_columns_are_reported_or_skipped(tmp_path, content, words):
    good = b"fine B-x\n\nword O\n"
    path = write(tmp_path, (content.encode() if isinstance(content, str) else content) + good)
    if "S-" in str(content) or "E-" in str(content):
        path = write(tmp_path, Path(path).read_bytes().replace(b"fine B-x", b"fine S-x"))
    with pytest.raises(DataError) as raised:
        read(path)
    assert words in str(raised.value) and str(raised.value).startswith(path)
    corpus = read(path, on_bad_row="skip")
    assert words_and_tags(corpus) == ([("fine",), ("word",)], [("B-x",), ("O",)])
    assert (corpus.facts["train"].num_skipped, corpus.facts["train"].rows) == (1, 2)


SPAN = {"start": 0, "end": 4, "label": "x"}
BAD_ROWS = [
    ({"tokens": ["a"], "tags": ["O", "O"]}, "1 tokens and 2 tags"),
    ({"tokens": [], "tags": []}, "0 tokens and 0 tags"),
    ({"tokens": ["a", ""], "tags": ["O", "O"]}, "'tokens' is ['a', '']"),
    ({"tokens": ["a"], "tags": [3]}, "'tags' is [3]"),
    ({"words": ["a"]}, "'tokens' is None. It must be a list of texts, none empty. Give the row `tokens` and"),
    ({"tokens": ["\ud83d"], "tags": ["O"]}, "half of a surrogate pair"),
    ({"text": " ", "spans": []}, "'text' is ' '"),
    ({"text": "Bonn"}, "'spans' is None"),
    ({"text": "Bonn", "spans": [{**SPAN, "end": 5}]}, "out of range. The text has 4 characters"),
    ({"text": "Bonn", "spans": [{**SPAN, "start": -1}]}, "out of range"),
    ({"text": "Bonn", "spans": [{**SPAN, "end": 0}]}, "is empty or out of range"),
    ({"text": "Bonn", "spans": [{**SPAN, "end": "4"}]}, "must have whole numbers `start` and `end`"),
    ({"text": "Bonn", "spans": [{**SPAN, "start": True}]}, "must have whole numbers `start` and `end`"),
    ({"text": "Bonn", "spans": [{**SPAN, "label": " "}]}, "and a `label`"),
    ({"text": "Bonn", "spans": [[0, 4]]}, "must have whole numbers"),
    ({"text": "Bonn", "spans": [{**SPAN, "text": "Born"}]}, "does not match 'Bonn' in the text. Offsets"),
    ({"text": "Bonner", "spans": [SPAN]}, "covers or cuts 'Bonner'. It must begin and end with words"),
    ({"text": "Bonn am", "spans": [{**SPAN, "end": 5}]}, "must begin and end with words"),
    ({"text": "Bonn am", "spans": [{**SPAN, "end": 7}, SPAN]}, "overlaps another span"),
    ([1], "list, not an object"),
]


@pytest.mark.parametrize(("row", "words"), BAD_ROWS, ids=[words for _, words in BAD_ROWS])
def test_bad_rows_are_reported_or_skipped(tmp_path, row, words):
    path = write(
        tmp_path, "\n".join(map(json.dumps, [{"tokens": ["fine"], "tags": ["B-x"]}, row])) + "\n", "train.jsonl"
    )
    with pytest.raises(DataError) as raised:
        read(path)
    assert words in str(raised.value) and str(raised.value).startswith(path) and "line 2" in str(raised.value)
    corpus = read(path, on_bad_row="skip")
    assert (words_and_tags(corpus)[0], corpus.facts["train"].num_skipped) == ([("fine",)], 1)


def test_types_that_training_did_not_see(tmp_path):
    train, test = write(tmp_path, CONLL), write(tmp_path, "a B-x\n\nb B-place\n", "test.conll")
    both = read(train, test=test)
    assert (both.labels, len(both.splits["test"])) == (("person", "place", "x"), 2)
    with pytest.raises(DataError, match=r"test.conll, sentence 1 \(line 1\), line 1: the type of 'B-x' is not in"):
        read(train, test=test, labels=["person", "place"])
    skipped = read(train, test=test, labels=["person", "place"], on_bad_row="skip")
    assert words_and_tags(skipped, "test")[0] == [("b",)]
    listed = read(train, test=test, labels=["x", "place", "person"])
    assert (listed.labels, len(listed.splits["test"])) == (("x", "place", "person"), 2)
    with pytest.raises(DataError, match="the type of 'B-person' is not in"):
        TaggedData(train).load("words", labels=["place"])


def test_repeats_and_contradictions_are_removed(tmp_path):
    path = write(tmp_path, CONLL + "\nsaid O\n\nBonn O\n")
    corpus = read(path, deduplicate=True)
    assert words_and_tags(corpus)[0] == [WORDS[0], WORDS[2]]
    assert corpus.facts["train"].left_out == {"repeated": 1, "contradicting": 2}


def test_data_without_entities(tmp_path):
    with pytest.raises(DataError, match="the 1 sentences have no entity"):
        read(write(tmp_path, "a O\n"))
    with pytest.raises(DataError, match="the 0 sentences have no entity"):
        read(write(tmp_path, "a\n"), on_bad_row="skip")


@pytest.mark.parametrize(("options", "words"), [({"labels": []}, "labels is"), ({"labels": ["a", "a"]}, "type twice")])
def test_impossible_settings(options, words):
    with pytest.raises(ConfigError, match=words):
        TaggedData("x", **options)
    with pytest.raises(ConfigError, match="is not a regular expression"):
        ConllFormat(word_suffix="[")
    with pytest.raises(ConfigError, match="comment is an empty text"):
        ConllFormat(comment="")


@needs_real_data
def test_real_files_have_the_published_sizes():
    """Sentences, words and types of WNUT-17 (Derczynski et al. 2017, table 1), and characters of Weibo NER."""
    files = {split: str(REAL / f"wnut17_{name}.conll") for split, name in (("validation", "dev"), ("test", "test"))}
    corpus = read(str(REAL / "wnut17_train.conll"), **files)
    counts = {split: (len(each), sum(len(one.words) for one in each)) for split, each in corpus.splits.items()}
    assert counts == {"train": (3394, 62730), "validation": (1009, 15733), "test": (1287, 23394)}
    assert corpus.labels == ("corporation", "creative-work", "group", "location", "person", "product")
    weibo = str(REAL / "zh_weibo_train.conll.gz")
    numbered = ConllFormat(word_suffix="[0-9]+")
    with pytest.raises(DataError, match=r"line 1266: 'I-PER.NOM' follows 'I-PER.NAM'. The scheme bio"):
        read(weibo, conll=numbered)
    repaired = read(weibo, conll=numbered, invalid_tags="repair")
    assert len(repaired.splits["train"]) == 1350 and len(repaired.labels) == 8
    assert "".join(repaired.splits["train"][0].words).startswith("科技全方位资讯智能")
