"""framework.predict writes embeddings as arrays and tables, on several processes, and continues after a stop."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from framework.errors import DataError
from framework.inference import vector_files
from tests.support.commands.in_process import run_command
from tests.support.tasks.commands import prepare

BLOCK_ROWS = 4


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Path:
    """Returns a folder with the embedding run `one`, eleven texts, and their embeddings as JSONL."""
    folder = tmp_path_factory.mktemp("embedder")
    overrides = [*prepare("embedding", folder), "run.id=one", "trainer.max_steps=2", "trainer.val_every_n_steps=null"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(patch, "train", *overrides) == 0
        texts = [f"a {'long ' * (7 * each % 5)}text with number {each}" for each in range(11)]
        lines = [json.dumps({"text": text, "id": index}) for index, text in enumerate(texts)]
        (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
        assert run_command(patch, "predict", *PREDICT, "input=texts.jsonl", "output=rows.jsonl") == 0
    return folder


PREDICT = ("run=one", "precision=fp32", "on_bad_row=skip")


@pytest.fixture
def expected(embedder, monkeypatch) -> np.ndarray:
    monkeypatch.chdir(embedder)
    monkeypatch.setattr(vector_files, "BLOCK_ROWS", BLOCK_ROWS)
    rows = [json.loads(line) for line in (embedder / "rows.jsonl").read_text().splitlines()]
    return np.array([row["embedding"] for row in rows], dtype=np.float32)


def test_arrays_and_tables_have_the_rows_in_order(embedder, expected, monkeypatch):
    assert run_command(monkeypatch, "predict", *PREDICT, "input=texts.jsonl", "output=v.npy") == 0
    assert not Path("v.npy.parts").exists()
    vectors = np.load("v.npy")
    assert (vectors.dtype, vectors.shape) == (np.float32, (11, 32))
    np.testing.assert_allclose(vectors, expected, atol=2e-6)

    # The second row cannot be read.
    lines = (embedder / "texts.jsonl").read_text().splitlines()
    Path("bad.jsonl").write_text("\n".join([lines[0], '{"id": 5}', *lines[2:]]) + "\n")
    assert run_command(monkeypatch, "predict", *PREDICT, "input=bad.jsonl", "output=b.npy") == 0
    vectors = np.load("b.npy")
    assert np.isnan(vectors[1]).all()
    np.testing.assert_allclose(np.delete(vectors, 1, 0), np.delete(expected, 1, 0), atol=2e-6)
    keep = "keep_columns=[id]"
    assert run_command(monkeypatch, "predict", *PREDICT, keep, "input=bad.jsonl", "output=b.parquet") == 0
    table = pq.read_table("b.parquet").to_pydict()
    assert table["id"] == [str(index) if index != 1 else None for index in range(11)]
    assert table["embedding"][1] is None
    np.testing.assert_allclose(table["embedding"][10], expected[10], atol=2e-6)
    assert pq.ParquetFile("b.parquet").num_row_groups == 3


@pytest.mark.parametrize("output", ["s.npy", "s.parquet"])
def test_a_stopped_command_continues(expected, monkeypatch, capfd, output):
    write, written = vector_files.VectorFile.write, []

    def stop_after_one(self, block, *given):
        if written:
            raise DataError("stopped")
        written.append(block)
        write(self, block, *given)

    monkeypatch.setattr(vector_files.VectorFile, "write", stop_after_one)
    command = (*PREDICT, "input=texts.jsonl", f"output={output}")
    assert run_command(monkeypatch, "predict", *command) == 2
    assert not Path(output).exists() and Path(f"{output}.parts").is_dir()

    def record(self, block, *given):
        written.append(block)
        write(self, block, *given)

    monkeypatch.setattr(vector_files.VectorFile, "write", record)
    capfd.readouterr()
    assert run_command(monkeypatch, "predict", *command) == 0
    assert "1 of 3 blocks are complete, continuing" in capfd.readouterr().err
    assert written == [0, 1, 2]
    vectors = np.load(output) if output.endswith(".npy") else pq.read_table(output)["embedding"].to_pylist()
    np.testing.assert_allclose(np.array(vectors), expected, atol=2e-6)


def test_other_rows_do_not_continue(expected, monkeypatch):
    """Vectors of a stopped command with other rows are not used."""
    command = (*PREDICT, "output=o.npy")

    def stop(_self):
        raise DataError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(vector_files.VectorFile, "finish", stop)
        assert run_command(patch, "predict", *command, "text=another text") == 2
    assert run_command(monkeypatch, "predict", *command, "input=texts.jsonl") == 0
    np.testing.assert_allclose(np.load("o.npy"), expected, atol=2e-6)


def test_processes_share_the_blocks(expected, tmp_path):
    first, second = (vector_files.VectorArray(tmp_path / "two.npy", 11, 32) for _ in range(2))
    record = {"rows": "a"}
    assert first.begin(record) == 0
    assert [first.claim(0), second.claim(0), second.claim(1)] == [True, False, True]
    second.write(1, expected[4:8], [])
    assert [first.claim(1), second.is_complete(0), first.is_complete(1)] == [False, False, True]
    # A start after a stop claims again what is not complete.
    assert first.begin(record) == 1
    assert [second.claim(0), first.claim(1), first.claim(2)] == [True, False, True]
    first.write(2, expected[8:], [])
    second.write(0, expected[:4], [])
    first.finish()
    assert np.array_equal(np.load(tmp_path / "two.npy"), expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output=x.npy", "keep_columns=[id]"], "output=x.npy is an array, which has no columns"),
        (["output=missing/x.npy"], "output=.*missing/x.npy cannot be written"),
        (["output=x.arrow"], "embeddings also as .npy or .parquet"),
    ],
)
def test_invalid_outputs(expected, monkeypatch, capfd, overrides, message):
    assert run_command(monkeypatch, "predict", *PREDICT, "input=texts.jsonl", *overrides) == 2
    (error,) = [line for line in capfd.readouterr().err.splitlines() if "Error" in line]
    assert re.search(message, error)
