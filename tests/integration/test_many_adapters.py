"""framework.predict gives each row the adapter and the head of its customer, as a pass for each customer does."""

import json
from pathlib import Path

import pytest

from tests.support.commands.in_process import FINETUNE, LABELS, TEXTS, run_command, train_vocabulary, write_rows

LORA = [*FINETUNE, "adapter=lora", "model=from_weights", "tokenizer=from_weights", "init_from=base"]
LORA = [each for each in LORA if not each.startswith(("model.", "tokenizer.path", "run.id"))]


@pytest.fixture(scope="module")
def customers(tmp_path_factory) -> Path:
    """Returns a folder with the run `base` and the adapters `acme` and `bolt`, with other labels and rank."""
    folder = tmp_path_factory.mktemp("customers")
    train_vocabulary(TEXTS, 80, folder / "tokenizer")
    write_rows(folder / "rows.csv", TEXTS, LABELS)
    write_rows(folder / "other.csv", TEXTS, ["praise", "none", "blame", "blame"] * 8)
    rows = [{"text": text, "customer": "acme" if index % 3 else "bolt"} for index, text in enumerate(TEXTS[:18])]
    write_jsonl(folder / "mixed.jsonl", rows)
    bolt = ["data.train=other.csv", "adapter.rank=3", "adapter.targets=[query,output,up]", "seed=5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command(patch, "train", *FINETUNE, "run.id=base") == 0
        for name, more in {"acme": [], "bolt": bolt, "foreign": []}.items():
            overrides = ["optimizer.lr=0.1", f"run.id={name}", *more]
            base = FINETUNE if name == "foreign" else LORA
            assert run_command(patch, "train", *base, *overrides) == 0
        assert run_command(patch, "train", *LORA, "init_from=foreign", "run.id=elsewhere") == 0
    (folder / "adapters.yaml").write_text("acme: acme\nbolt: runs/bolt\n")
    return folder


PREDICT = ("run=base", "input=mixed.jsonl", "precision=fp32")
MANY = (*PREDICT, "adapters=adapters.yaml", "adapter_column=customer")


@pytest.fixture
def predict(customers, monkeypatch, capfd):
    monkeypatch.chdir(customers)

    def run(*overrides):
        code = run_command(monkeypatch, "predict", *overrides)
        return code, *capfd.readouterr()

    return run


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_one_pass_equals_a_pass_for_each_adapter(predict):
    code, out, err = predict(*MANY)
    assert code == 0, err
    mixed = rows_of(out)
    assert [row["text"] for row in mixed] == TEXTS[:18]
    for name in ("acme", "bolt"):
        single = rows_of(predict(*PREDICT, f"run={name}")[1])
        for ours, theirs in zip(mixed, single, strict=True):
            if ours["customer"] == name:
                assert ours["label"] == theirs["label"]
                assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-6)
    # The updates matter.
    plain = rows_of(predict(*PREDICT)[1])
    assert abs(mixed[1]["probabilities"]["1"] - plain[1]["probabilities"]["1"]) > 1e-3
    small = rows_of(predict(*MANY, "micro_batch_tokens=16")[1])
    for a, b in zip(mixed, small, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-6)


def test_folders_of_peft_are_adapters(predict, customers, monkeypatch):
    """Exported adapters give the predictions of their runs, with their labels."""
    expected = rows_of(predict(*MANY)[1])
    for name in ("acme", "bolt"):
        assert run_command(monkeypatch, "export", f"run={name}", "lora=separate", f"output=peft_{name}") == 0
    (customers / "peft.yaml").write_text("acme: peft_acme\nbolt: peft_bolt\n")
    code, out, err = predict(*MANY, "adapters=peft.yaml")
    assert code == 0, err
    printed = "\n".join(line for line in out.splitlines() if line.startswith("{"))
    for ours, theirs in zip(rows_of(printed), expected, strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-6)
    assert run_command(monkeypatch, "export", "run=elsewhere", "lora=separate", "output=peft_elsewhere") == 0
    (customers / "peft.yaml").write_text("acme: peft_elsewhere\nbolt: bolt\n")
    code, _, err = predict(*MANY, "adapters=peft.yaml")
    assert code == 2 and "peft_elsewhere was trained on other weights than" in err


def test_an_unknown_adapter_is_named_before_a_model_is_read(predict, customers, monkeypatch):
    rows = rows_of((customers / "mixed.jsonl").read_text())
    rows[16]["customer"] = "acmee"
    write_jsonl(customers / "wrong.jsonl", rows)
    wrong = (*MANY, "input=wrong.jsonl")
    code, _, err = predict(*wrong, "run=nowhere")
    message = (
        "wrong.jsonl, row 17 (line 17): 'customer' is 'acmee', which is no adapter of adapters.yaml. Known are acme, "
    )
    assert code == 2 and message + "bolt." in err
    code, out, err = predict(*wrong, "on_bad_row=skip")
    assert code == 0, err
    skipped = rows_of(out)
    assert (skipped[16]["label"], "row 17" in skipped[16]["error"]) == (None, True)
    assert skipped[17]["label"] is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("bolt: bolt\nacme: base\n", "base is not a run with an adapter"),
        ("bolt: bolt\nacme: nowhere\n", "the adapter acme is nowhere, which is neither a run nor a folder of peft"),
        ("bolt: bolt\nacme: elsewhere\n", "the adapter acme (elsewhere) was trained on other weights than run="),
        ("[a]", "adapters=other.yaml is not a mapping of names to runs"),
    ],
)
def test_adapters_that_cannot_be_used(predict, customers, content, message):
    (customers / "other.yaml").write_text(content)
    code, _, err = predict(*MANY, "adapters=other.yaml")
    assert code == 2 and message in err


def test_keys_that_need_each_other(predict):
    assert "need each other" in predict(*PREDICT, "adapter_column=customer")[2]
    assert "`input` is null" in predict(*MANY, "input=null", "text=a film")[2]
