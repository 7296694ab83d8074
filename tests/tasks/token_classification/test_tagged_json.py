"""Tagged sentences in JSON: CLUENER, doccano, spaCy, one list or a row per line; and CoNLL in another encoding."""

import json
from pathlib import Path

import pytest

from framework.errors import ConfigError, DataError
from framework.tasks.token_classification.data import TaggedData
from framework.tasks.token_classification.tagged_rows import ConllFormat

TEXT = "浙商银行的叶老桂"
TAGS = ("B-company", *["I-company"] * 3, "O", "B-name", "I-name", "I-name")
CLUENER = {"text": TEXT, "label": {"name": {"叶老桂": [[5, 7]]}, "company": {"浙商银行": [[0, 3]]}}}
FORMS = [
    CLUENER,
    {"text": TEXT, "label": [[0, 4, "company"], [5, 8, "name"]]},
    {"text": TEXT, "entities": [[0, 4, "company"], [5, 8, "name"]]},
    {"text": TEXT, "spans": [[0, 4, "company"], {"start": 5, "end": 8, "label": "name", "text": "叶老桂"}]},
    {"tokens": list(TEXT), "tags": list(TAGS)},
]


def load(file: Path, content: str, **settings):
    file.write_text(content, encoding="utf-8")
    return TaggedData(str(file), **settings).load("characters")


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("row", FORMS)
@pytest.mark.parametrize("name", ["train.json", "train.jsonl", "list.json", "train"])
def test_the_same_tags_from_every_form(tmp_path, row, name):
    content = json.dumps([row, row], ensure_ascii=False) if name == "list.json" else lines(row, row)
    loaded = load(tmp_path / name, content)
    assert [(sentence.words, sentence.tags) for sentence in loaded.splits["train"]] == [(tuple(TEXT), TAGS)] * 2
    assert loaded.labels == ("company", "name")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            CLUENER | {"label": {"name": [[5, 7]]}},
            r"the mentions of 'name' are \[\[5, 7\]\]\. Each type needs an object",
        ),
        (
            CLUENER | {"label": {"name": {"叶老桂": [5, 7]}}},
            r"the offsets of '叶老桂' are \[5, 7\]\. They must be a list of",
        ),
        (CLUENER | {"label": {"name": {"叶老桂": [[5, "7"]]}}}, r"the offsets of '叶老桂' are \[\[5, '7'\]\]"),
        (
            CLUENER | {"label": {"name": {"叶老桂": [[4, 6]]}}},
            r"does not match '的叶老' in the text\. Offsets must count code points",
        ),
        (
            CLUENER | {"label": {"name": {"叶老桂": [[7, 9]]}}},
            r"is empty or out of range\. The text has 8 characters",
        ),
        ({"text": TEXT, "label": "name"}, r"'label' is 'name'\. It must be a list"),
        ({"text": TEXT}, r"'spans' is None\. It must be a list; `label` may also be \{type: \{mention: \[\["),
        (
            {"text": TEXT, "label": [[0, 4]]},
            r"the span \[0, 4\] is incomplete\. It must have whole numbers `start` and `end`, and a `label`",
        ),
        ({"text": TEXT, "label": [[4, 0, "name"]]}, r"is empty or out of range"),
        ({"text": TEXT, "label": [[0, 4, "a"], [3, 5, "b"]]}, r"overlaps another span"),
        ([TEXT], r"list, not an object. Each row must be one JSON object"),
    ],
)
def test_each_kind_of_error_names_the_row(tmp_path, row, message):
    with pytest.raises(DataError, match=r"a\.json, row 2 \(line 2\): .*" + message):
        load(tmp_path / "a.json", lines(CLUENER, row))
    assert len(load(tmp_path / "a.json", lines(CLUENER, row), on_bad_row="skip").splits["train"]) == 1


def test_an_unknown_type_names_the_row_of_a_list(tmp_path):
    with pytest.raises(DataError, match=r"a\.json, row 1: the type of 'B-company' is not in `labels`"):
        load(tmp_path / "a.json", json.dumps([CLUENER]), labels=["name"])


def test_conll_in_another_encoding(tmp_path):
    (tmp_path / "esp.train").write_bytes("España B-LOC\nes O\n\nComisión B-ORG\n".encode("latin-1"))
    loaded = TaggedData(str(tmp_path / "esp.train"), conll=ConllFormat(encoding="latin-1")).load("words")
    assert [sentence.words for sentence in loaded.splits["train"]] == [("España", "es"), ("Comisión",)]
    with pytest.raises(DataError, match=r"line 1: byte 0xf1 at position 5 is not UTF-8"):
        TaggedData(str(tmp_path / "esp.train"), conll=None).load("words")
    with pytest.raises(ConfigError, match=r"conll\.encoding is 'latin-99', which Python does not know"):
        ConllFormat(encoding="latin-99")
