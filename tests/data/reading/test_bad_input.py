"""Damaged and odd input: one DataError that names the location, or a counted row; nothing is lost silently."""

import csv
import gzip
import json
import tracemalloc
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framework.data.reading.documents import Cleaner
from framework.data.reading.files import Reading, decode_line
from framework.data.reading.sources import DatasetRows, Source, TableFiles, TextFiles
from framework.errors import DataError
from framework.random import generator
from tests.support.data.source_files import texts_of, write

NEW = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}


def write_arrow(path: Path, table: pa.Table, kind: str = "stream", batch: int = 100) -> Path:
    with pa.OSFile(str(path), "wb") as sink, NEW[kind](sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def skipped(source: Source) -> tuple[list[str], int, str]:
    """Returns (texts, omitted rows, message about the first of them)."""
    reading = Reading("skip")
    return texts_of(source, reading), reading.num_skipped, "".join(reading.skipped[:1])


def error_of(source: Source, on_bad_row: str = "error") -> str:
    with pytest.raises(DataError) as caught:
        texts_of(source, Reading(on_bad_row))
    return str(caught.value)


def strings(*values: bytes) -> pa.Array:
    """Writes texts of any bytes."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


# Rows


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"[" * 100_000, r"not JSON (nested too deeply)"),
        (b"9" * 5_000, r"not JSON (Exceeds the limit"),
        (b'"x\\uD83d"', r"'text' holds \ud83d, half of a surrogate pair"),
        (b'"x\\ude00\\ud83d"', r"'text' holds \ude00, half of a surrogate pair"),
        (b'"x\x00y"', r"not JSON (Invalid control character at)"),
        (b'"x', r"not JSON (Invalid control character at)"),
        (b'"x"}{"text": "y"', r"not JSON (Extra data)"),
    ],
)
def test_json_that_is_not_text_is_reported_by_its_line(tmp_path, value, message):
    file = write(tmp_path / "a.jsonl", b'{"text": "a"}\n\n{"text": ' + value + b'}\n{"text": "b"}\n')
    source = TableFiles(str(file))
    assert f"{file}, line 3: {message}" in error_of(source)
    texts, num_skipped, first = skipped(source)
    assert (texts, num_skipped) == (["a", "b"], 1)
    assert message in first


def test_escaped_json_characters_are_text(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"text": "a\\u0000b\\ud83d\\ude00\\u0085c\\r\\n"}\r\n')
    assert texts_of(TableFiles(str(file))) == ["a\x00b😀\x85c\r\n"]


@pytest.mark.parametrize("character", ["\x00", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_line_feeds_end_rows(tmp_path, character, end):
    text = f"one{character}two"
    (tmp_path / "a.csv").write_bytes(f'text,n{end}"{text}{end}more",1{end}{text},2{end}'.encode())
    assert texts_of(TableFiles(str(tmp_path / "a.csv"))) == [f"{text}{end}more", text]
    (tmp_path / "a.txt").write_bytes(f"{text}{end}{end}x{end}".encode())
    assert texts_of(TextFiles(str(tmp_path / "a.txt"), "blank_lines")) == [text + end, "x" + end]
    if character >= " ":
        (tmp_path / "a.jsonl").write_bytes(f'{{"text": "{text}"}}{end}'.encode() * 2)
        assert texts_of(TableFiles(str(tmp_path / "a.jsonl"))) == [text, text]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, suffix):
    for name, content in (("a.txt", "one"), ("a.csv", "text,n\none,1\n"), ("a.jsonl", '{"text": "one"}\n')):
        file = write(tmp_path / (name + suffix), ("\ufeff" + content).encode())
        source = TextFiles(str(file)) if name == "a.txt" else TableFiles(str(file))
        assert texts_of(source) == ["one"]
    file = write(tmp_path / ("b.txt" + suffix), "\ufeff".encode())
    cleaned = Cleaner().clean(texts_of(TextFiles(str(file))))
    assert (cleaned.texts, cleaned.num_duplicates) == ([], 0)


def test_bytes_that_are_not_utf_8_are_reported_by_line_and_offset(tmp_path):
    # é is two bytes.
    with pytest.raises(DataError, match="a, line 9: byte 0xe9 at position 3 is not UTF-8"):
        decode_line(Path("a"), 7, "é\n\né".encode() + b"\xe9t\xe9\n")
    file = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\ntwo\n\nok\n\n\xff\n")
    assert "line 6: byte 0xff at position 1" in error_of(TextFiles(str(file), "blank_lines"))
    assert "line 6: byte 0xff at position 1" in error_of(TextFiles(str(file)))
    assert skipped(TextFiles(str(file), "blank_lines"))[:2] == (["one\ntwo\n", "ok\n"], 1)
    file.write_bytes(b"\xef\xbb\xbfab\xff")
    assert "line 1: byte 0xff at position 3" in error_of(TextFiles(str(file)))


def test_the_lines_after_bad_bytes_of_a_row_are_no_rows(tmp_path):
    file = write(tmp_path / "a.csv", b'text,n\n"one\ntw\xffo\nthree",1\nfour,2\n\xff,3\nfive\n')
    assert "a.csv, line 3: byte 0xff at position 3" in error_of(TableFiles(str(file)))
    texts, num_skipped, first = skipped(TableFiles(str(file)))
    assert (texts, num_skipped) == (["four"], 3)
    assert "line 3" in first


def test_each_line_inside_an_open_quote_is_counted(tmp_path):
    file = write(tmp_path / "a.csv", b'text,n\na,1\n"b,2\nc\xff,3\nd,"4"\ne,5\n"f,6\ng,7\n')
    assert "a.csv, row 2 (lines 3 to 5): ',' expected after '\"'. Quotes begin" in error_of(TableFiles(str(file)))
    reading = Reading("skip")
    assert texts_of(TableFiles(str(file)), reading) == ["a", "e"]
    assert reading.num_skipped == 5
    assert "row 6 (lines 7 to 8): unexpected end of data" in reading.skipped[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'"text\na\nb\n', r"a.csv, line 1: unexpected end of data. The header must be one line"),
        (b"text,n\ra,1\rb,2\r", r"a.csv, line 1: new-line character seen in unquoted field"),
        (b"te\xffxt,n\na,1\n", r"a.csv, line 1: byte 0xff at position 3"),
        (
            b"text,n,text\na,1,b\n",
            r"a.csv, line 1: column 'text' occurs more than once. Requested names must be unique. Rename",
        ),
        ("text\na\n".encode("utf-16"), r"a.csv, line 1: byte 0xff at position 1"),
    ],
)
def test_a_header_that_cannot_be_read_is_an_error_even_if_rows_are_skipped(tmp_path, content, message):
    source = TableFiles(str(write(tmp_path / "a.csv", content)))
    assert message in error_of(source, "skip")


def test_rows_are_counted_even_if_all_are_omitted(tmp_path):
    file = write(tmp_path / "a.jsonl", b"x\ny\n")
    assert skipped(TableFiles(str(file)))[:2] == ([], 2)
    assert "has no row where {'n': '1'}" in error_of(TableFiles(str(file), where={"n": 1}), "skip")


# Parquet and Arrow


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
def test_columns_of_bytes_and_missing_values(tmp_path, name):
    values = [strings(b"one", b"\xff", "é".encode()), pa.array([None, b"two", b"\xc3"], pa.binary())]
    table = pa.table({"text": values[0], "raw": values[1], "n": pa.array([1, 2, None])})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        write_arrow(tmp_path / name, table, name.split(".")[0])
    source = TableFiles(str(tmp_path / name))
    assert f"{name}, row 2: 'text' is not UTF-8. Correct it or remove the row" in error_of(source)
    assert skipped(source)[:2] == (["one", "é"], 1)
    assert f"{name}, row 1: 'raw' has no value" in error_of(TableFiles(str(tmp_path / name), "raw"))
    assert skipped(TableFiles(str(tmp_path / name), "raw"))[:2] == (["two"], 2)
    reading = Reading("skip")
    assert texts_of(TableFiles(str(tmp_path / name), where={"n": 1}), reading) == ["one"]
    assert [message.split(": ")[1] for message in reading.skipped] == [
        "'text' is not UTF-8. Correct it or remove the row.",
        "'n' has no value. Fill it in or remove the row.",
    ]
    doubled = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"])
    pq.write_table(doubled, tmp_path / name) if name == "a.parquet" else write_arrow(tmp_path / name, doubled)
    assert "schema: column 'text' occurs more than once" in error_of(source)


def test_damaged_parquet_is_an_error_after_the_readable_rows(tmp_path):
    table = pa.table({"text": [f"{number} " * 50 for number in range(400)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    page = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(2).column(0)
    first = page.dictionary_page_offset + 60
    content[first : first + 200] = b"\xff" * 200
    (tmp_path / "a.parquet").write_bytes(content)
    reading, texts = Reading("skip"), []
    with pytest.raises(DataError, match=r"a\.parquet is damaged after row 200 \(.+\)\. Fetch or write it again"):
        texts.extend(TableFiles(str(tmp_path / "a.parquet")).read(reading))
    for end in (3, 40, len(content) // 2, len(content) - 1):
        (tmp_path / "a.parquet").write_bytes(content[:end])
        assert "a.parquet is damaged or not a file of kind parquet (" in error_of(
            TableFiles(str(tmp_path / "a.parquet")), "skip"
        )


def test_parquet_with_fewer_rows_than_in_its_footer(tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), tmp_path / "a.parquet", row_group_size=1)
    whole = pq.ParquetFile.iter_batches

    def without_the_second(file, columns, row_groups, batch_size):
        return whole(file, columns=columns, row_groups=row_groups) if row_groups != [1] else iter(())

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", without_the_second)
    assert "damaged after row 2 (it has 2 rows, but 3 according to the footer)" in error_of(
        TableFiles(str(tmp_path / "a.parquet"))
    )


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_truncated_arrow_file_is_an_error_wherever_it_is_cut(tmp_path, kind):
    table = pa.table({"text": [f"text {number}" for number in range(12)]})
    file = write_arrow(tmp_path / "a.arrow", table, kind, batch=4)
    content = file.read_bytes()
    assert len(texts_of(TableFiles(str(file)))) == 12
    for end in range(0, len(content), 4):
        file.write_bytes(content[:end])
        assert "is damaged" in error_of(TableFiles(str(file)), "skip"), end
    if kind == "stream":
        file.write_bytes(content + content)
        assert "damaged after row 12 (the first stream is followed by another one)" in error_of(TableFiles(str(file)))


@pytest.mark.parametrize("offset", [-1, 2**20, 1])
def test_arrow_offsets_out_of_range_are_an_error(tmp_path, offset):
    table = pa.table({"text": ["one", "two", "three"] * 40})
    file = write_arrow(tmp_path / "a.arrow", table, batch=60)
    content = bytearray(file.read_bytes())
    # The offsets of the second batch begin with 0, 3, 6, 11; the 6 is overwritten.
    position = content.rfind(b"".join(number.to_bytes(4, "little") for number in (0, 3, 6, 11)))
    content[position + 8 : position + 12] = offset.to_bytes(4, "little", signed=True)
    file.write_bytes(content)
    assert "a.arrow is damaged after row 60 (" in error_of(TableFiles(str(file)), "skip")


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_names_of_columns_that_are_not_utf_8_are_an_error(tmp_path, kind):
    file = write_arrow(tmp_path / "a.arrow", pa.table({"text": ["a"], "zzzz": ["b"]}), kind)
    file.write_bytes(file.read_bytes().replace(b"zzzz", b"\xff" * 4))
    assert "a.arrow is damaged or not a file of kind arrow ('utf-8' codec" in error_of(TableFiles(str(file)), "skip")


def test_a_dataset_whose_file_was_cut_between_batches_is_an_error(tmp_path):
    rows = datasets.Dataset.from_dict({"text": [f"text {number}" for number in range(2_000)]})
    rows.save_to_disk(tmp_path / "rows")
    (file,) = (tmp_path / "rows").glob("*.arrow")
    with pa.memory_map(str(file)) as mapped:
        pa.ipc.open_stream(mapped).read_next_batch()
        end = mapped.tell()
    content = file.read_bytes()
    file.write_bytes(content[:end])
    assert "the mark at the end of an Arrow stream is missing" in error_of(DatasetRows(str(tmp_path / "rows")), "skip")
    file.write_bytes(content[: end // 2])
    assert "cannot be opened" in error_of(DatasetRows(str(tmp_path / "rows")), "skip")


# Files


@pytest.mark.parametrize("name", ["a.txt", "a.csv.gz", "a.jsonl", "a.parquet", "a.arrow"])
def test_a_file_that_vanishes_or_becomes_a_folder(tmp_path, name, monkeypatch):
    file = tmp_path / name
    source = (TextFiles if name == "a.txt" else TableFiles)(str(file))
    assert f"no file matches '{file}'" in error_of(source)
    monkeypatch.setattr(type(source), "paths", lambda source: [file])
    assert f"{name} cannot be read (No such file or directory)" in error_of(source, "skip")
    file.mkdir()
    expected = "cannot be read (Is a directory)" if name == "a.txt" else "is a folder without sub-folders"
    assert f"{name} {expected}" in error_of(source, "skip")
    monkeypatch.undo()
    assert f"'{file}' is a folder, not a file. Give a glob of the files in it" in error_of(source)


@pytest.mark.parametrize(
    ("name", "most"), [("a.txt", 4), ("a.txt.gz", 4), ("short.txt", 4), ("a.jsonl", 4), ("a.csv", 11)]
)
def test_a_document_of_20_megabytes_needs_a_few_times_its_size(tmp_path, name, most):
    text = ("a few more words of it " + "\n" * (name == "short.txt")) * 870_000
    table = {"a.jsonl": json.dumps({"text": text}), "a.csv": f'text,n\n"{text}",1\n'}
    file = write(tmp_path / name, table.get(name, text).encode())
    source = TableFiles(str(file)) if name in table else TextFiles(str(file))
    tracemalloc.start()
    try:
        lengths = [len(document) for document in source.read(Reading())]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert lengths == [len(text)]
    assert peak < most * len(text)


def test_read_omitted_and_empty_rows_add_up_to_the_rows_of_the_files(tmp_path):
    draw = generator("test_bad_input", 1)
    kinds = draw.choice(["good", "empty", "bad"], size=300, p=[0.6, 0.2, 0.2]).tolist()
    texts = [
        {"good": f"text {number}", "empty": " ", "bad": f"\udcff{number}"}[kind] for number, kind in enumerate(kinds)
    ]
    raw = [text.encode("utf-8", "surrogateescape") for text in texts]
    rows = [b'{"text": "' + text + b'"}\n' for text in raw]
    write(tmp_path / "1.jsonl.gz", b"".join(rows))
    write(tmp_path / "2.csv", b"n,text\n" + b"".join(b'1,"' + text + b'"\n' for text in raw))
    pq.write_table(pa.table({"text": strings(*raw)}), tmp_path / "3.parquet", row_group_size=50)
    write_arrow(tmp_path / "4.arrow", pa.table({"text": strings(*raw)}), "file")
    (tmp_path / "5").mkdir()
    for number, text in enumerate(raw):
        write(tmp_path / "5" / f"{number:03}.txt", text)
    write(tmp_path / "6.txt", b"\n\n".join(text for text in raw if text.strip()))
    sources = [TableFiles(str(tmp_path / name)) for name in ("1.jsonl.gz", "2.csv", "3.parquet", "4.arrow")]
    sources += [TextFiles(str(tmp_path / "5" / "*")), TextFiles(str(tmp_path / "6.txt"), "blank_lines")]
    reading = Reading("skip")
    read = [text for source in sources for text in source.read(reading)]
    cleaned = Cleaner(deduplicate=False).clean(read)
    good = [text for text, kind in zip(texts, kinds, strict=True) if kind == "good"]
    assert cleaned.texts == good * 6
    assert reading.num_skipped == kinds.count("bad") * 6
    # Blank lines separate documents and are no documents.
    assert len(read) - len(cleaned.texts) == kinds.count("empty") * 5


def test_one_damaged_source_of_several_is_named(tmp_path):
    write(tmp_path / "a.txt", b"one")
    with (tmp_path / "b.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], ["two"]])
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"three\n\nfour\n" * 1_000)[:-5])
    sources = [TextFiles(str(tmp_path / "a.txt")), TableFiles(str(tmp_path / "b.csv"))]
    assert [text for source in sources for text in texts_of(source)] == ["one", "two"]
    sources.append(TextFiles(str(tmp_path / "c.txt.gz"), "blank_lines"))
    with pytest.raises(DataError, match=r"c\.txt\.gz is damaged after line"):
        [text for source in sources for text in texts_of(source, Reading("skip"))]
