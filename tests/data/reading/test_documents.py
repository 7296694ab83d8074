import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.reading.documents import Cleaner, SeenHashes, split_sentences, strip_html, text_hash
from framework.random import key, mix


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It cost 2.5 million. Wow... and more.", ["It cost 2.5 million.", "Wow... and more."]),
        ("He said \"No.\" She left. (Really.) 'Yes.'", ['He said "No."', "She left.", "(Really.)", "'Yes.'"]),
        ("Dr. Smith met J. R. Jones in the U.S. Army.", ["Dr. Smith met J. R. Jones in the U.S. Army."]),
        ("So did I. Then we ate, e.g. Soup.", ["So did I.", "Then we ate, e.g. Soup."]),
        ("Apples etc. were there. Pears etc. They left.", ["Apples etc. were there.", "Pears etc.", "They left."]),
        ("Room No. 5 is on 3 Jan. 2004. 12 came.", ["Room No. 5 is on 3 Jan. 2004.", "12 came."]),
        ("A heading\n\nThe text\ngoes on. End", ["A heading", "The text goes on.", "End"]),
        ("A heading\r\n \r\nThe text", ["A heading", "The text"]),
        ("ended without capital.\n\nstill a new one", ["ended without capital.", "still a new one"]),
        ("the film is great . i liked it . 5 stars", ["the film is great .", "i liked it .", "5 stars"]),
        ("She waited … and left.", ["She waited … and left."]),
        ("今天天气好。我们去公园吧！好吗？", ["今天天气好。", "我们去公园吧！", "好吗？"]),
        ("“好。”他说。", ["“好。”", "他说。"]),
        ("他想了想……走了。\n下一句", ["他想了想……", "走了。", "下一句"]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


@given(st.text(alphabet="aA.!?…。！”)\"' \n\t\r\x85B5—"))
def test_no_text_is_lost(text):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence == " ".join(sentence.split()) and sentence for sentence in sentences)


def test_strip_html():
    text = "A<br /><br>B &amp; <i>C</i> <A href='x'>D</a> &quot;E&quot; <3 <sarcasm> 1 < 2<p class=\"x\">F</p> "
    assert strip_html(text) == 'A\n\nB & C D "E" <3 <sarcasm> 1 < 2\nF'


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_cleaner_drops_empty_and_repeated_texts(batch_size):
    cleaner = Cleaner(strip_html=True)
    texts = ["a<br />b", " ", "a \n b ", "c", "<br />", "c"]
    batches = [cleaner.clean(texts[first : first + batch_size]) for first in range(0, 6, batch_size)]
    assert [text for batch in batches for text in batch.texts] == ["a\nb", "c"]
    indices = [first * batch_size + index for first, batch in enumerate(batches) for index in batch.indices]
    assert indices == [0, 3]
    assert sum(batch.num_duplicates for batch in batches) == 2
    assert [identity for batch in batches for identity in batch.hashes] == [text_hash("a b"), text_hash("c")]


def test_cleaner_keeps_texts_as_configured():
    cleaned = Cleaner(strip_html=False, deduplicate=False).clean(["a<br />", "a<br />"])
    assert cleaned.texts == ["a<br />"] * 2 and cleaned.indices.tolist() == [0, 1]
    assert cleaned.num_duplicates == 0


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 5, 2**63, 2**64 - 1]) | st.integers(0, 30), max_size=12)))
def test_a_hash_set_is_a_set(batches):
    """Compares with Python's own set."""
    ours, reference = SeenHashes(), set()
    for batch in batches:
        added = []
        for value in batch:
            added.append(value not in reference)
            reference.add(value)
        assert ours.add(np.array(batch, dtype=np.uint64)).tolist() == added
        assert len(ours) == len(reference)


def test_a_large_hash_set_needs_few_searches_and_8_bytes_per_element():
    hashes = mix(key(0, "hashes"), np.arange(30_000))
    ours = SeenHashes()
    for first in range(0, 30_000, 10):
        assert ours.add(hashes[first : first + 10]).all()
    assert not ours.add(hashes).any()
    arrays = ours._runs
    assert len(arrays) <= 12 and sum(run.nbytes for run in arrays) == 240_000
