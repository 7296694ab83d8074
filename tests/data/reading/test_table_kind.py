"""The kind and layout of a table: detected from its name, else its content, else the default of the format."""

import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framework.data.reading.files import Reading, find_files
from framework.data.reading.rows import read_rows
from framework.data.reading.sources import TableFiles, TextFiles
from framework.data.reading.table_format import TableFormat
from framework.data.reading.table_kind import detect_kind
from framework.errors import ConfigError, DataError
from tests.support.data.source_files import write

LABELLED = ["text", "label"]
TWO_ROWS = [("good, film", "1"), ("bad", "0")]


def values(file: Path, requested=LABELLED, **table_format) -> list[tuple[str, ...]]:
    rows = read_rows(file, requested, None, TableFormat(**table_format))
    return [tuple(row.values[column] for column in requested) for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "table_format"),
    [
        # The name decides, regardless of the experiment.
        ("a.csv", b'text,label\n"good, film",1\nbad,0\n', {"kind": "tsv", "columns": ["text", "label"]}),
        ("a.tsv", b"text\tlabel\ngood, film\t1\nbad\t0\n", {"kind": "csv"}),
        ("a.json", b'{"text": "good, film", "label": 1}\n{"text": "bad", "label": 0}\n', {"kind": "tsv"}),
        ("a.json", b'[{"text": "good, film", "label": 1},\n{"text": "bad", "label": 0}]\n', {}),
        ("a.ndjson", b'{"text": "good, film", "label": 1}\n{"text": "bad", "label": 0}\n', {}),
        # The content decides if the name does not.
        ("a.txt", b"text\tlabel\ngood, film\t1\nbad\t0\n", {}),
        ("train", b"good, film\t1\nbad\t0\n", {"columns": ["text", "label"]}),
        ("a.txt", b'label,text\n1,"good, film"\n0,bad\n', {}),
        ("a.data", b'{"text": "good, film", "label": 1}\n\n{"text": "bad", "label": 0}\n', {"kind": "tsv"}),
        ("a.data", b'[\n {"text": "good, film", "label": 1},\n {"text": "bad", "label": 0}]', {}),
        ("a.txt", b"text|label\ngood, film|1\nbad|0\n", {"delimiter": "|"}),
        ("a.txt", b"good, film\t1\nbad\t0\n", {"delimiter": "tab", "columns": ["text", "label"]}),
        # European spreadsheets use semicolons.
        ("a.csv", b"text;label\ngood, film;1\nbad;0\n", {}),
        ("a.csv", b"good, film;1\nbad;0\n", {"columns": ["text", "label"]}),
        ("a.csv", b'"label" , "text"\n1,"good, film"\n0,bad\n'.replace(b'" , "', b'","'), {}),
        ("a.csv", b' label , text \n1,"good, film"\n0,bad\n', {}),
    ],
)
def test_the_same_rows_under_any_file_name(tmp_path, name, content, table_format):
    assert values(write(tmp_path / name, content), **table_format) == TWO_ROWS


def test_the_content_of_binary_files_without_a_name(tmp_path):
    table = pa.table({"text": ["good, film", "bad"], "label": [1, 0]})
    pq.write_table(table, tmp_path / "a")
    with pa.OSFile(str(tmp_path / "b.bin"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert values(tmp_path / "a") == values(tmp_path / "b.bin") == TWO_ROWS


def test_the_default_of_an_experiment_applies_if_nothing_else_decides(tmp_path):
    file = write(tmp_path / "a.txt", b"good, film\t1\n")
    assert values(file, kind="tsv", columns=LABELLED) == [("good, film", "1")]
    assert values(file, kind="csv", columns=LABELLED) == [("good", " film\t1")]
    with pytest.raises(DataError, match=r"a\.txt is of no known kind"):
        values(file, columns=LABELLED)


def test_errors_name_the_conclusion_and_its_reason(tmp_path):
    with pytest.raises(DataError, match=r"a\.txt is of no known kind by its name and its first lines\."):
        values(write(tmp_path / "a.txt", b"some words\nmore\n"))
    message = (
        r"no column 'text' among \['a', 'b'\] \(read as TSV because of its content, since its name has no known suffix"
    )
    with pytest.raises(DataError, match=message):
        values(write(tmp_path / "b.txt", b"a\tb\n1\t2\n"))
    message = r"\(read as CSV because its name ends in \.csv, with delimiter ','\)"
    with pytest.raises(DataError, match=message):
        values(write(tmp_path / "c.csv", b"a,b\n1,2\n"))
    write(tmp_path / "d.json", b'{"text": "a"}\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r"d\.json has one JSON value per line, so it has no keys train"):
        values(tmp_path / "d.json:train")
    assert detect_kind(tmp_path / "d.json", TableFormat()).kind == "jsonl"


# Headers


def body(*rows: str, times: int = 5) -> bytes:
    return ("\n".join(rows) + "\n").encode() * times


LONG = ("what a long and boring film it is\t0", "a film that nobody should miss, ever\t1")
NAMED = ("what a long and boring film it is\tneg", "a film that nobody should miss, ever\tpos")


@pytest.mark.parametrize(
    ("header", "rows", "reason"),
    [
        ("sentence\tlabel", LONG, "'label' is the name of its column"),
        ("Sentence\tLABEL", NAMED, "'LABEL' is the name of its column"),
        ("review\tsentiment", NAMED[:1], "its cells are common names of columns"),
        ("remark\tmood", LONG, "'mood' is above numbers"),
        ("remark\tgold class", NAMED, "'remark' is none of the 2 values below it"),
        ("标题\t类别", LONG, "its cells are common names of columns"),
        ("题目\t种类", LONG, "'种类' is above numbers"),
    ],
)
def test_a_header_in_a_file_read_without_one_is_an_error(tmp_path, header, rows, reason):
    file = write(tmp_path / "a.tsv", header.encode() + b"\n" + body(*rows))
    with pytest.raises(DataError, match=rf"a\.tsv, line 1: .* looks like a header, because {reason}"):
        values(file, columns=LABELLED)
    assert len(values(file, columns=LABELLED, header=False)) == 5 * len(rows) + 1
    # Naming the columns as the file does is enough, even if an experiment has other names.
    assert len(values(file, header.split("\t"), columns=LABELLED)) == 5 * len(rows)


def test_a_header_of_more_columns_is_recognized(tmp_path):
    file = write(tmp_path / "a.csv", b"id,review,sentiment\n1,good,positive\n2,bad,negative\n")
    with pytest.raises(DataError, match=r"looks like a header, because it has 3 names and format\.columns has 2"):
        values(file, columns=LABELLED)
    assert values(file, ["review", "sentiment"], columns=LABELLED) == [("good", "positive"), ("bad", "negative")]


def test_a_json_file_of_one_object_is_one_row(tmp_path):
    assert values(write(tmp_path / "a.json", b'{"text": "good",\n "label": 1}')) == [("good", "1")]


def test_a_header_with_the_requested_names_is_read_by_its_names(tmp_path):
    file = write(tmp_path / "a.tsv", b"id\tlabel\ttext\n7\t1\tgood\n8\t0\tbad\n")
    assert values(file, columns=LABELLED) == [("good", "1"), ("bad", "0")]
    with pytest.raises(DataError, match=r"no column 'text' among \['id', 'label', 'body'\]"):
        values(write(tmp_path / "b.tsv", b"id\tlabel\tbody\n7\t1\tgood\n"), columns=LABELLED, header=True)
    lists = write(tmp_path / "a.json", b'[["label", "text"], [1, "good"], [0, "bad"]]')
    assert values(lists, columns=LABELLED) == [("good", "1"), ("bad", "0")]
    lists = write(tmp_path / "a.jsonl", b'["sentence", "label"]\n["good", 1]\n["bad", 0]\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: \['sentence', 'label'\] looks like a header"):
        values(lists, columns=LABELLED)


@pytest.mark.parametrize(
    "rows",
    [
        ("fine\t1", *LONG),
        ("great\tpos", *NAMED, *NAMED),
        ("what a long and boring film it is\toos", *LONG[:1]),  # one label below it proves nothing
        ("how are you\tgreeting", "book a table\tbooking", "what is the time\ttime", "stop\tstop"),
        ("很好吃\t好", "送餐太慢了\t差", "味道不错\t好"),
    ],
)
def test_rows_that_are_no_header(tmp_path, rows):
    assert len(values(write(tmp_path / "a.tsv", body(*rows, times=1)), columns=LABELLED)) == len(rows)


def test_header_false_needs_names():
    with pytest.raises(ConfigError, match=r"format\.header is false and format\.columns is null"):
        TableFormat(header=False)


# Quotes


QUOTED = b'text\tlabel\n"good film\nindeed"\t1\n"a\tb"\t1\n"so ""so"""\t0\nplain "word"\t1\n'
LONE = b'text\tlabel\n"good film\t1\nbad" film\t0\nand"\t1\n"so\t0\nit is"\t1\n'


def test_quotes_of_tsv_are_kept_as_text(tmp_path):
    assert values(write(tmp_path / "a.tsv", QUOTED)) == [
        ("good film\nindeed", "1"),
        ("a\tb", "1"),
        ('so "so"', "0"),
        ('plain "word"', "1"),
    ]
    rows = [('"good film', "1"), ('bad" film', "0"), ('and"', "1"), ('"so', "0"), ('it is"', "1")]
    assert values(write(tmp_path / "b.tsv", LONE)) == rows
    everything = write(tmp_path / "c.tsv", b'"text"\t"label"\n"good"\t"1"\n"bad"\t"0"\n')
    assert values(everything) == [("good", "1"), ("bad", "0")]
    # One sentence in quotes among others is a quotation.
    assert values(write(tmp_path / "d.tsv", b'text\tlabel\n"Go!"\t1\nbad\t0\n')) == [('"Go!"', "1"), ("bad", "0")]


def test_rows_that_single_quotes_would_merge_are_an_error_and_each_is_counted(tmp_path):
    file = write(tmp_path / "a.tsv", LONE)
    message = r"a\.tsv, rows 4 to 5 \(lines 5 to 6\): a quote opens in the first line and closes in the last, but each"
    with pytest.raises(DataError, match=message):
        values(write(tmp_path / "a.tsv", LONE.replace(b'"good', b"good").replace(b'and"', b"and")), quote='"')
    reading = Reading("skip")
    kept = [row.values["text"] for row in read_rows(file, ["text"], reading, TableFormat(quote='"'))]
    assert len(kept) + reading.num_skipped == 5
    # In CSV, and if the lines are no rows by themselves, a quoted text may contain line ends.
    assert values(write(tmp_path / "a.csv", b'text,label\n"one, two\nthree, four",1\n')) == [
        ("one, two\nthree, four", "1")
    ]
    assert values(write(tmp_path / "b.tsv", b'text\tlabel\n"one\ntwo"\t1\n'), quote='"') == [("one\ntwo", "1")]


# Inputs without an end


def test_a_pipe_and_a_device_are_rejected_immediately(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    refused: list[str] = []

    def read_all() -> None:
        for path in (tmp_path / "a.csv", Path("/dev/zero"), Path("/dev/stdin"), Path("/dev/full")):
            for open_it in (lambda path=path: list(read_rows(path, ["text"])), lambda path=path: find_files(str(path))):
                try:
                    open_it()
                except DataError as error:
                    refused.append(str(error))

    thread = threading.Thread(target=read_all, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert [("a named pipe" in message, "a device" in message) for message in refused[:4]] == [(True, False)] * 2 + [
        (False, True)
    ] * 2
    assert "Data files are opened more than once and must end." in refused[0]


def test_texts_of_a_corpus_in_another_encoding(tmp_path):
    write(tmp_path / "a.txt", "café\n".encode("latin-1"))
    assert list(TextFiles(str(tmp_path / "a.txt"), encoding="latin-1").read(Reading())) == ["café\n"]
    with pytest.raises(ConfigError, match="encoding is 'latin-99', which Python does not know"):
        TextFiles(str(tmp_path / "a.txt"), encoding="latin-99")
    write(tmp_path / "b.csv", "1;café\n2;thé\n".encode("latin-1"))
    table = TableFiles(str(tmp_path / "b.csv"), format=TableFormat(columns=["n", "text"], encoding="latin-1"))
    assert list(table.read(Reading())) == ["café", "thé"]
