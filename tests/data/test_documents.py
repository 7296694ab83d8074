import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.documents import Cleaner, split_sentences, strip_html, text_hash


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


def test_cleaner_counts_what_it_drops():
    cleaner = Cleaner(strip_html=True)
    texts = ["a<br />b", " ", "a \n b ", "c", "<br />", "c"]
    kept = list(cleaner.clean(texts))
    assert [text for text, _ in kept] == ["a\nb", "c"]
    assert (cleaner.num_read, cleaner.num_empty, cleaner.num_duplicates) == (6, 2, 2)
    assert [identity for _, identity in kept] == [text_hash("a b"), text_hash("c")]


def test_cleaner_keeps_what_it_is_told_to_keep():
    cleaner = Cleaner(strip_html=False, deduplicate=False)
    assert [text for text, _ in cleaner.clean(["a<br />", "a<br />"])] == ["a<br />"] * 2
    assert (cleaner.num_read, cleaner.num_empty, cleaner.num_duplicates) == (2, 0, 0)
