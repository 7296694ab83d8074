"""Tests of input and output of framework.predict: words, CoNLL columns, kept columns, bad rows, invalid outputs.

The last tests use the same run to find names for framework.prepare.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from framework.data.reading.documents import text_hash
from tests.support.commands.in_process import run_command
from tests.support.tasks.commands import prepare

SENTENCE = ["ada", "sang", "in", "eck", "am", "see"]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> Path:
    """Returns a folder with `one`, a token classification run trained by the command."""
    folder = tmp_path_factory.mktemp("tagger")
    overrides = [*prepare("token_classification", folder), "run.id=one", "trainer.max_steps=12"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(patch, "train", *overrides) == 0
    return folder


@pytest.fixture
def ask(tagger, tmp_path, monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """Returns a function that predicts in an empty folder and returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> tuple[int, str, str]:
        command_line = ("run=one", f"runs={tagger / 'runs'}", "precision=fp32", *overrides)
        code = run_command(monkeypatch, "predict", *command_line)
        return code, *capfd.readouterr()

    return run


def write_jsonl(path: Path, rows: list[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_words_are_tagged_wherever_they_stand(tmp_path, ask):
    """Predicts one sentence as text, as words, and as CoNLL columns with and without tags."""
    write_jsonl(tmp_path / "text.jsonl", [{"text": " ".join(SENTENCE)}])
    write_jsonl(tmp_path / "tokens.jsonl", [{"tokens": SENTENCE}])
    write_jsonl(tmp_path / "named.jsonl", [{"words": SENTENCE}])
    (tmp_path / "tagged.conll").write_text("-DOCSTART- O\n\n" + "".join(f"{word} O\n" for word in SENTENCE))
    (tmp_path / "bare.txt").write_text("\n".join(SENTENCE) + "\n\n\n")
    (tmp_path / "columns.tsv").write_text("".join(f"{index}\t{word}\n" for index, word in enumerate(SENTENCE)))
    found = {}
    for name, more in {
        "text.jsonl": [],
        "tokens.jsonl": [],
        "named.jsonl": ["columns={tokens: words}"],
        "tagged.conll": [],
        "bare.txt": [],
        "columns.tsv": ["format.kind=conll", "conll.separator=tab", "conll.word_column=1"],
    }.items():
        code, out, err = ask(f"input={name}", *more)
        assert code == 0, err
        (found[name],) = rows_of(out)
    for row in found.values():
        assert row["tokens"] == SENTENCE and row["tags"] == found["text.jsonl"]["tags"]
        assert [entity["text"] for entity in row["entities"]] == ["ada", "eck am see"]
    assert found["text.jsonl"]["tags"] == ["B-person", "O", "O", "B-place", "I-place", "I-place"]
    assert [(each["start"], each["end"]) for each in found["bare.txt"]["entities"]] == [(0, 1), (3, 6)]
    assert list(found["tokens.jsonl"]) == ["tokens", "entities", "tags"]


def test_tags_are_written_as_columns(tmp_path, ask):
    (tmp_path / "in.conll").write_text("ada\nsang\n\nin\tO\nfurt\tO\n")
    code, out, err = ask("input=in.conll", "output=out.conll")
    assert (code, out, err) == (0, "", "")
    assert (tmp_path / "out.conll").read_text() == "ada\tB-person\nsang\tO\n\nin\tO\nfurt\tB-place\n\n"


def test_kept_columns_stay_as_they_are_beside_what_is_predicted(tmp_path, ask):
    kept = {"id": 1, "tags": ["O"], "score": 0.5, "none": None, "nested": {"a": [1, "é"]}}
    write_jsonl(tmp_path / "in.jsonl", [{"text": "ada sang", **kept}])
    columns = f"keep_columns=[{','.join(kept)}]"
    _, out, _ = ask("input=in.jsonl", columns)
    (row,) = rows_of(out)
    assert {name: row[name] for name in kept if name != "tags"} == {n: v for n, v in kept.items() if n != "tags"}
    assert (row["input_tags"], row["tags"]) == (["O"], ["B-person", "O"])
    assert ask("input=in.jsonl", columns, "output=out.csv")[0] == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        (cells,) = csv.DictReader(file)
    assert (cells["id"], cells["none"], cells["text"]) == ("1", "", "ada sang")
    assert json.loads(cells["nested"]) == kept["nested"] and json.loads(cells["tags"]) == ["B-person", "O"]


def test_bad_rows_are_answered_in_their_place(tmp_path, ask):
    write_jsonl(tmp_path / "in.jsonl", [{"tokens": ["ada"], "id": 7}, {"tokens": [], "id": 8}, 3])
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"tokens": [\n{"tokens": ["furt"], "id": null}\n')
    code, out, err = ask("input=in.jsonl", "keep_columns=[id]")
    assert (code, out) == (2, "") and "in.jsonl, row 2 (line 2): 'tokens' is '[]'" in err
    code, out, err = ask("input=in.jsonl", "keep_columns=[id]", "on_bad_row=skip")
    assert code == 0 and "3 of 5 rows are not predicted. For example: in.jsonl, row 2 (line 2): 'tokens' is" in err
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [7, 8, None, None, None]
    assert [row["tags"] for row in rows] == [["B-person"], None, None, None, ["B-place"]]
    assert ["error" in row for row in rows] == [False, True, True, True, False]
    assert "line 4: not JSON" in rows[3]["error"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["output=nowhere/out.jsonl"], "output=nowhere/out.jsonl cannot be written (No such file or directory)"),
        (["output=in.jsonl"], "output=in.jsonl is the input file in.jsonl"),
        (["output=."], "output=. is a folder"),
        (["output=out.parquet"], "output=out.parquet is for vectors, but TokenClassificationTask predicts no vectors"),
        (["columns={words: text}"], "`columns` contains the field 'words', but this task reads text, tokens"),
        (["keep_columns=[nothing]"], "in.jsonl, line 1: no column 'nothing' among ['text']"),
    ],
)
def test_what_cannot_be_is_one_error_and_harms_nothing(tmp_path, ask, overrides, message):
    write_jsonl(tmp_path / "in.jsonl", [{"text": "ada"}])
    code, out, err = ask("input=in.jsonl", *overrides)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert rows_of((tmp_path / "in.jsonl").read_text()) == [{"text": "ada"}]


TEXTS = ["ada lives in furt", "cem works in dorf", "bela rot sang in eck am see", "in furt sang ada"]


@pytest.fixture
def prepare_texts(tagger, tmp_path, monkeypatch, capfd) -> Callable[..., tuple[int, str]]:
    """Returns a function that prepares a store of `TEXTS` and returns exit code and standard error."""
    pytest.importorskip("phonenumbers")
    pytest.importorskip("stdnum")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")

    def run(*overrides: str) -> tuple[int, str]:
        sources = ["corpus.sources.text.files=texts.txt", "corpus.sources.text.documents=blank_lines"]
        model = ["vocabulary.vocab_size=200", f"corpus.personal_data_model={tagger / 'runs' / 'one'}"]
        code = run_command(monkeypatch, "prepare", "corpus=text", *sources, *model, "store=store", *overrides)
        return code, capfd.readouterr().err

    return run


def test_prepare_masks_the_names_that_the_run_finds(ask, prepare_texts, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS])
    assert ask("input=rows.jsonl", "output=out.jsonl")[0] == 0
    rows = rows_of((tmp_path / "out.jsonl").read_text())
    people = [each for row in rows for each in row["entities"] if each["label"] == "person"]
    masked = []
    for row in rows:
        text = row["text"]
        for each in reversed([each for each in row["entities"] if each["label"] == "person"]):
            text = f"{text[: each['start']]}[NAME]{text[each['end'] :]}"
        masked.append(text)
    assert people and masked != TEXTS
    settings = ["corpus.personal_data=mask", "corpus.personal_data_types=[person]"]
    assert prepare_texts(*settings)[0] == 0
    assert json.loads((tmp_path / "store" / "card.json").read_text())["personal_data"]["finds"] == {"name": len(people)}
    store = datasets.Dataset.from_file(str(tmp_path / "store" / "data.arrow"))
    assert sorted(store["text_hash"]) == sorted(map(text_hash, masked))
    assert prepare_texts(*settings)[0] == 0  # the same store
    assert "made from other files or settings" in prepare_texts(settings[0])[1]  # all types


def test_prepare_rejects_a_model_before_texts_are_read(prepare_texts, tmp_path):
    (tmp_path / "texts.txt").unlink()
    code, error = prepare_texts("corpus.personal_data=mask", "corpus.personal_data_types=[PER]")
    assert code == 2 and "personal_data_types has 'PER', but" in error and "knows the types person, place" in error
    code, error = prepare_texts("corpus.personal_data=mask", "corpus.personal_data_model=no_run")
    assert code == 2 and "there is no run 'no_run'" in error
