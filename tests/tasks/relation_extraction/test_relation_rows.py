"""Relations with entity positions: FewRel, TACRED, OpenNRE, and the errors of each."""

import json
from pathlib import Path

import pytest

from framework.errors import DataError
from framework.tasks.relation_extraction.data import RelationData

TOKENS = ["Ann", "Lee", "founded", "Acme"]
TACRED = {
    "id": "1",
    "token": TOKENS,
    "subj_start": 0,
    "subj_end": 1,
    "obj_start": 3,
    "obj_end": 3,
    "relation": "founder",
}
OTHER = TACRED | {"subj_start": 3, "subj_end": 3, "obj_start": 0, "obj_end": 0, "relation": "none"}
OPEN_NRE = {
    "token": TOKENS,
    "h": {"name": "ann", "pos": [0, 2]},
    "t": {"name": "acme", "pos": [3, 4]},
    "relation": "founder",
}
FEW_REL = {
    "founder": [{"tokens": TOKENS, "h": ["ann lee", "Q1", [[0, 1], [3]]], "t": ["acme", "Q2", [[3]]]}],
    "none": [{"tokens": TOKENS, "h": ["acme", "Q2", [[3]]], "t": ["ann", "Q1", [[0]]]}],
}
MARKED = ["<e1>Ann Lee</e1> founded <e2>Acme</e2>", "<e2>Ann</e2> Lee founded <e1>Acme</e1>"]


def load(file: Path, content: str, **settings):
    file.write_text(content, encoding="utf-8")
    loaded = RelationData(str(file), **settings).load()
    return [(row.text.marked, row.label) for row in loaded.splits["train"]], loaded


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tacred.json", json.dumps([TACRED, OTHER], indent=1)),
        ("few_rel.json", json.dumps(FEW_REL)),
        ("open_nre.txt", lines(OPEN_NRE, OPEN_NRE | {"h": {"pos": [3, 4]}, "t": {"pos": [0, 1]}, "relation": "none"})),
        (
            "a.jsonl",
            lines(
                {"tokens": TOKENS, "head": [0, 2], "tail": [3, 4], "label": "founder"},
                {"tokens": TOKENS, "head": {"start": 3, "end": 4}, "tail": {"start": 0, "end": 1}, "label": "none"},
            ),
        ),
        (
            "text.json",
            lines(
                {"text": "Ann Lee founded Acme", "h": {"pos": [0, 7]}, "t": {"pos": [16, 20]}, "relation": "founder"},
                {"text": "Ann Lee founded Acme", "h": {"pos": [16, 20]}, "t": {"pos": [0, 3]}, "relation": "none"},
            ),
        ),
    ],
)
def test_positions_of_entities_become_marks(tmp_path, name, content):
    rows, loaded = load(tmp_path / name, content)
    assert rows == list(zip(MARKED, ["founder", "none"], strict=True))
    assert loaded.labels == ("founder", "none")
    assert loaded.splits["train"][0].text.entities == ("Ann Lee", "Acme")
    assert loaded.splits["train"][0].text.text == "Ann Lee founded Acme"


def test_chinese_tokens_have_no_spaces_between_them(tmp_path):
    row = {"tokens": [*"马云创立", "Alibaba", "公司"], "head": [0, 2], "tail": [4, 6], "label": "founder"}
    rows, _ = load(tmp_path / "a.jsonl", lines(row, row | {"label": "none"}))
    assert rows[0][0] == "<e1>马云</e1>创立 <e2>Alibaba 公司</e2>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": "Ann Lee"}, r"'token' is 'Ann Lee'\. It must be a list of texts"),
        ({"token": ["Ann", ""]}, r"'token' is \['Ann', ''\]\. It must be a list of texts, none empty"),
        ({"subj_end": None}, r"subj_start and subj_end is \[0, None\]\. It must be the start and end of the entity"),
        ({"subj_start": True}, r"subj_start and subj_end is \[True, 1\]\. It must be the start"),
        ({"obj_end": 4}, r"obj_start and obj_end is \[3, 4\], empty or outside of the 4 tokens"),
        ({"obj_start": 1}, r"the entities 'Ann Lee' and 'Lee founded Acme' overlap"),
        ({"relation": None}, r"the label is None\. Each row needs a text in 'label' or 'relation'"),
        ({"relation": " "}, r"the label is ' '\."),
        ({"h": [0, 2]}, r"obj_start"),
        ({"h": ["ann", "Q1", []], "t": [3, 4]}, r"h is \['ann', 'Q1', \[\]\]\. It must be the start"),
        (
            {"h": ["ann", "Q1", [[0, 2]]], "t": [3, 4]},
            r"h is \['ann', 'Q1', \[\[0, 2\]\]\]\. It must be the start",
        ),
        ({"h": {"pos": [0, 9]}, "t": [3, 4]}, r"h is \{'pos': \[0, 9\]\}, empty or outside of the 4 tokens"),
        ({"token": ["<e1>", "Lee", "founded", "Acme"]}, r"<e1> occurs 2 times in the text"),
    ],
)
def test_each_kind_of_error_names_the_row(tmp_path, change, message):
    broken = TACRED | change
    if "h" in change and "t" not in change:
        broken = {key: value for key, value in broken.items() if not key.startswith("obj")}
    with pytest.raises(DataError, match=r"a\.jsonl, row 2 \(line 2\): .*" + message):
        load(tmp_path / "a.jsonl", lines(OTHER, broken, TACRED))
    rows, _ = load(tmp_path / "a.jsonl", lines(OTHER, broken, TACRED), on_bad_row="skip")
    assert [label for _, label in rows] == ["none", "founder"]


def test_rows_without_positions_or_texts(tmp_path):
    with pytest.raises(DataError, match=r"row 1 \(line 1\): tokens without the positions of two entities"):
        load(tmp_path / "a.jsonl", lines({"tokens": TOKENS, "label": "a"}, TACRED))
    with pytest.raises(DataError, match=r"row 1 \(line 1\): no 'text' and no 'tokens' among \['body', 'label'\]"):
        load(tmp_path / "a.jsonl", lines({"body": "x", "label": "a"}, TACRED))
    with pytest.raises(DataError, match=r"a\.json, row 1: str, not an object"):
        load(tmp_path / "a.json", json.dumps({"founder": ["x"]}))
    with pytest.raises(DataError, match=r"a\.json: rows must be in a list"):
        load(tmp_path / "a.json", json.dumps({"founder": "x"}))
