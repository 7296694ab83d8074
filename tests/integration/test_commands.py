# ruff: noqa: E501  the table of cases has one case a line
"""Tests of bad input for each command: one clear error, no traceback, exit code 2, and no change on disk.

Each case runs the `main` of a command in this process, in an empty folder, on tiny data.
"""

import importlib.util
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from framework.checkpoint.load import read_full_state
from tests.support.commands.in_process import (
    COMMANDS,
    FINETUNE,
    LABELS,
    TEXTS,
    assert_clear_error,
    files_below,
    train_vocabulary,
    write_rows,
)


def rows(**changes: object) -> Callable[[Path], None]:
    """Writes rows.csv with changed texts, labels or columns."""
    values = {"texts": TEXTS, "labels": LABELS, **changes}
    return lambda folder: write_rows(folder / "rows.csv", **values)  # type: ignore[arg-type]


def content(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "rows.csv").write_bytes(data) and None


def nothing(folder: Path) -> None:
    del folder


BAD_INPUT = [
    ("unknown key", nothing, ["trainer.max_stepz=3"], "unknown config key `trainer.max_stepz`. Did you mean `max_steps`?"),
    ("unknown key with +", nothing, ["+trainer.max_stepz=3"], "unknown config key `trainer.max_stepz`. Did you mean `max_steps`?"),
    ("unknown key of a part", nothing, ["+task.maxlength=3"], "unknown config key `task.maxlength`. Did you mean `max_length`?"),
    ("unknown group", nothing, ["optimiser=adamw"], "unknown config key `optimiser`. Did you mean `optimizer`?"),
    ("unknown option", nothing, ["strategy=fsdp3"], "Available options in 'strategy': ddp, fsdp2, fsdp2_tp, hsdp, single, tp"),
    ("no value", nothing, ["trainer.max_steps"], "`trainer.max_steps` on the command line has no value"),
    ("unreadable override", nothing, ["a b=3"], "the override `a b=3` cannot be parsed"),
    ("wrong type", nothing, ["trainer.global_batch_size=many"], "`trainer.global_batch_size` is 'many'. It must be a whole number"),
    ("wrong type of a part", nothing, ["task.max_length=1.5"], "`task.max_length` is 1.5. It must be a whole number"),
    ("no length", nothing, ["trainer.max_steps=null", "trainer.max_epochs=null"], "The length of a run must be given"),
    ("below the range", nothing, ["trainer.keep_last=0"], "`trainer.keep_last` is 0. It must be at least 1"),
    ("above the range", nothing, ["trainer.max_steps=99999999999999999999"], "`trainer.max_steps` is 99999999999999999999. It must be at most 1,000,000,000,000,000"),
    ("kept but never written", nothing, ["trainer.keep_every_n_steps=30", "trainer.checkpoint_every_n_steps=20"], "`trainer.keep_every_n_steps` is 30, and `trainer.checkpoint_every_n_steps`, the interval of checkpoints, is 20"),
    ("nothing to roll back to", nothing, ["trainer.on_non_finite=roll_back"], "`trainer.checkpoint_every_n_steps` is null, so there would be no checkpoint to roll back to"),
    ("unknown way on", nothing, ["trainer.on_non_finite=ignore"], "`trainer.on_non_finite` is 'ignore'"),
    ("a negative cap", nothing, ["trainer.max_non_finite_steps=-1"], "`trainer.max_non_finite_steps` is -1. It must be at least 0"),
    ("unknown verification", nothing, ["run.verify=hashes"], "`run.verify` is 'hashes'"),
    ("two sizes of a step", nothing, ["trainer.global_batch_tokens=512"], "`trainer.global_batch_size` is 4 and `trainer.global_batch_tokens` is 512"),
    ("no size of a step", nothing, ["trainer.global_batch_size=null"], "`trainer.global_batch_size` is None and `trainer.global_batch_tokens` is None"),
    ("half a warm-up", nothing, ["trainer.batch_warmup_steps=3"], "`trainer.batch_warmup_start` is None, `trainer.batch_warmup_steps` is 3"),
    ("warm-up within epochs", nothing, ["trainer.batch_warmup_steps=3", "trainer.batch_warmup_start=2"], "batch_warmup_steps is 3, but each epoch of this task ends with a short step"),
    ("heads", nothing, ["model.num_heads=3"], "model.num_heads is 3, which does not divide model.hidden_size 16"),
    ("too long for the positions", nothing, ["task.max_length=600", "trainer.micro_batch_tokens=600"], "600 tokens, but the model has positions for 512"),
    ("too long for the budget", nothing, ["trainer.micro_batch_tokens=32"], "micro_batch_tokens is 32"),
    ("vocabulary", nothing, ["model.vocab_size=7"], "ids, but model.vocab_size=7"),
    ("padding of a RoBERTa", nothing, ["model.family=roberta"], "The family roberta counts positions from the id after its padding id"),
    ("missing file", nothing, ["data.train=nowhere.csv"], "nowhere.csv cannot be read"),
    ("empty path", nothing, ["data.train="], "`data.train` is empty"),
    ("missing tokenizer", nothing, ["tokenizer.path=nowhere"], "nowhere holds no tokenizer.json and no vocab.txt"),
    ("no tokenizer", nothing, ["tokenizer.path=null", "tokenizer.fallback=null"], "`tokenizer.path` and `init_from` are null"),
    ("empty file", content(b""), [], "rows.csv is empty"),
    ("header only", content(b"text,label\n"), [], "rows.csv has no rows"),
    ("missing column", rows(columns=("text", "stars")), [], "rows.csv, line 1: no column 'label' among ['text', 'stars']"),
    ("label outside the set", rows(labels=["1", "1", "0", "2"] * 8), ["data.labels=['0','1']"], "rows.csv, row 4 (line 5): the label '2' is none of 0, 1"),
    ("not UTF-8", content(b"text,label\ngood,1\nb\xe9te,0\n"), [], "rows.csv, line 3: byte 0xe9"),
    ("single class", rows(labels=["1"] * 32), [], "have the label '1'. Training needs at least 2 labels"),
    ("empty text", rows(texts=[" ", *TEXTS[1:]]), [], "rows.csv, row 1 (line 2): 'text' is empty"),
    ("fewer sequences than ranks", rows(texts=TEXTS[1:3], labels=LABELS[1:3]), ["data.validation_fraction=0", "strategy=ddp", "FOUR RANKS"], "2 training sequences for 4 ranks"),
    ("single with ranks", nothing, ["FOUR RANKS"], "strategy"),
    ("no such init_from", nothing, ["init_from=./nowhere"], "./nowhere does not exist"),
    ("weights of nothing", nothing, ["init_average_last=2"], "`init_average_last` is 2, but `init_from` is null"),
    ("no mean", nothing, ["init_average_last=0"], "`init_average_last` is 0"),
    ("average that stands still", nothing, ["trainer.ema_decay=1"], "`trainer.ema_decay` is 1.0. It must be greater than 0 and less than 1"),
    ("no such package", nothing, ["init_from=${distribution_file:no-such-package,model,1.0}"], "`python -m pip install no-such-package==1.0`"),
    ("no such resume", nothing, ["run.resume=nowhere"], "`run.resume` is 'nowhere', which is not a folder"),
    ("unknown protocol", nothing, ["run.checkpoints=nosuch://bucket"], "nosuch://bucket cannot be used for checkpoints (Protocol not known: nosuch). Choose a local folder, or"),
    ("password in a URL", nothing, ["run.checkpoints='memory://me:secret@bucket'"], "memory://***@bucket was given with a password or a query"),
    ("URL of a run folder", nothing, ["run.dir=memory://bucket"], "`run.dir` is 'memory://bucket', which is a URL. Run folders must be local. Set `run.checkpoints` to the URL instead"),
    ("no checkpoint behind a URL", nothing, ["run.resume=memory://nowhere/step_00000001"], "memory://nowhere/step_00000001 contains no complete checkpoint"),
    ("run.dir is a file", nothing, ["run.dir=rows.csv"], "`run.dir` is 'rows.csv', which is a file"),
    ("bad run id", nothing, ["run.id=a/b"], "run.id='a/b' cannot name a folder"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("prepare_folder", "overrides", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_train_tells_bad_input_in_one_line(here, call, monkeypatch, prepare_folder, overrides, message):
    prepare_folder(here)
    if "FOUR RANKS" in overrides:
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
            monkeypatch.setenv(name, value)
    before = files_below(here)
    outcome = call("train", *FINETUNE, *(override for override in overrides if override != "FOUR RANKS"))
    assert_clear_error(outcome, message)
    assert outcome.files == before
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_the_command_line(here, call, command):
    outcome = call(command, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"python -m framework.{command} ")


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("prepare", ["corpus=text"], "config key `corpus.sources.text.files` has no value"),
        ("prepare", ["corpus=text", "corpus.sources.text.files=nowhere/*.txt"], "no file matches 'nowhere/*.txt'"),
        (
            "prepare",
            ["vocabulary.vocab_sise=3"],
            "unknown config key `vocabulary.vocab_sise`. Did you mean `vocab_size`?",
        ),
        (
            "prepare",
            ["corpus=table", "corpus.sources.table.files=rows.csv", "stream=true"],
            "the source `table` is TableFiles",
        ),
        ("prepare", ["num_workers=-1"], "`num_workers` is -1"),
        (
            "train",
            [],
            "no task is chosen. This command requires one. Add `experiment=NAME` with one of clue, continue_pretraining, ",
        ),
        (
            "train",
            ["task=pretraining"],
            "or `data=NAME` with one of candidates, captioned_images, choices, demo_corpus",
        ),
        ("evaluate", [], "config key `run` has no value"),
        ("evaluate", ["run=./nowhere"], "./nowhere does not exist"),
        ("predict", ["run=./nowhere"], "Exactly one of them must be set"),
        ("predict", ["run=x", "input=nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        ("predict", ["run=x", "input=pipe"], "pipe is a named pipe, not a regular file"),
        ("predict", ["run=x", "input="], "`input` is empty"),
        ("predict", ["run=x", "text=x", "micro_batch_tokens=-1"], "`micro_batch_tokens` is -1"),
        ("export", ["run=./nowhere"], "./nowhere does not exist"),
        (
            "predict",
            ["run=nowhere", "text=x"],
            "there is no run 'nowhere' in runs, and 'nowhere' is not a local folder",
        ),
        ("export", ["run=x", "average_last=0"], "`average_last` is 0"),
    ],
)
def test_other_commands_tell_bad_input(here, call, command, overrides, message):
    os.mkfifo(here / "pipe")
    before = files_below(here)
    outcome = call(command, *overrides)
    assert_clear_error(outcome, message)
    assert outcome.files == before


def test_prepare_tells_its_passes_its_counts_and_its_card(here, call):
    (here / "texts.txt").write_text("\n\n".join(TEXTS))
    files = ["corpus.sources.text.files=texts.txt", "corpus.sources.text.documents=blank_lines"]
    arguments = ["corpus=text", *files, "vocabulary.vocab_size=80", "store=made", "num_workers=1"]
    outcome = call("prepare", *arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.err == "vocabulary: 0.0 MB of text\ntokens: 0.0 MB of text\n"
    assert re.search(r"documents +│ +32 │", outcome.out) and "near duplicates" in outcome.out
    assert "its card: made/card.png\n" in outcome.out and (here / "made" / "card.png").is_file()
    again = call("prepare", *arguments)
    assert (again.code, again.err) == (0, "") and "made was there already, from the same texts" in again.out


def test_a_run_from_training_to_prediction(here, call, rendered):
    """Trains, evaluates, exports and predicts, then checks that commands with mistakes do not harm the run."""
    trained = call("train", *FINETUNE)
    assert trained.code == 0, trained.err
    assert "finished" in trained.out
    run = here / "runs" / "mine"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["ended"], summary["steps"]) == ("finished", 2)
    assert call("train", *FINETUNE).code == 0, "a finished run tells its table again"

    evaluated = call("evaluate", "run=mine", "output=scores.json")
    assert evaluated.code == 0, evaluated.err
    scores = json.loads((here / "scores.json").read_text())
    assert scores["metrics"]["accuracy"] == pytest.approx(summary["last"]["val/accuracy"])
    assert [row["label"] for row in scores["classes"]] == ["0", "1"]

    assert call("export", "run=mine").code == 0
    (here / "in.jsonl").write_text(
        "".join(json.dumps({"text": text, "id": index}) + "\n" for index, text in enumerate(TEXTS))
    )
    predicted = call(
        "predict",
        "run=runs/mine/export",
        "input=in.jsonl",
        "output=out.jsonl",
        "keep_columns=[id]",
        "micro_batch_tokens=64",
    )
    assert predicted.code == 0, predicted.err
    predictions = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in predictions] == list(range(len(TEXTS)))
    assert [row["text"] for row in predictions] == TEXTS
    (here / "bare.txt").write_text(f"7@{TEXTS[7]}\n8@{TEXTS[8]}\n", encoding="latin-1")
    bare = ["format.kind=csv", "format.columns=[id,text]", "format.delimiter=@", "format.encoding=latin-1"]
    predicted = call("predict", "run=mine", "input=bare.txt", *bare, "keep_columns=[id]")
    rows = [json.loads(line) for line in predicted.out.splitlines()]
    assert [(row["id"], row["label"]) for row in rows] == [(str(row["id"]), row["label"]) for row in predictions[7:9]]
    alone = call("predict", "run=mine", f"text={TEXTS[7]}")
    assert json.loads(alone.out)["probability"] == pytest.approx(predictions[7]["probability"], abs=1e-5)

    train_vocabulary(["other words than those"], 60, here / "foreign")
    unchanged = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    bad = {
        ("seed=1",): "belongs to another config: `seed` was 0 and is now 1",
        ("model.num_layers=2",): "`model.num_layers` was 1 and is now 2",
        ("trainer.max_steps=1",): "`trainer.max_steps` is 1, but the run in runs/mine was started with 2",
        ("run.resume=never",): "already contains a run",
        ("run.id=other", "init_from=mine", "model.hidden_size=32"): "but this model requires",
        ("run.id=other", "init_from=mine", "tokenizer.path=foreign"): "has other ids than the tokenizer of init_from",
    }
    for overrides, message in bad.items():
        assert_clear_error(call("train", *FINETUNE, *overrides), message)
    write_rows(here / "rows.csv", TEXTS[:28], LABELS[:28])
    assert_clear_error(call("train", *FINETUNE, "trainer.max_steps=4"), "the data of the run")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == unchanged
    assert not (here / "runs" / "other").exists()
    assert not re.search(r"outputs|multirun|\.log$", " ".join(files_below(here)))


def test_checkpoints_behind_a_url_belong_to_their_run(here, call):
    url = f"memory://{here.name}"
    there, step = f"run.checkpoints={url}", f"{url}/mine/step_00000002"
    assert call("train", *FINETUNE, there).code == 0
    for forgotten, message in (
        (["trainer.max_steps=4"], f"has checkpoints up to step_00000002 in {url}/mine"),
        (
            [there, "run.dir=others"],
            "The checkpoints may belong to another run. Choose another `run.id`, restore the run folder",
        ),
    ):
        assert_clear_error(call("train", *FINETUNE, *forgotten), message)
    assert_clear_error(call("evaluate", f"run={url}/other/step_00000002"), "is not a checkpoint of a run in runs")
    assert call("train", *FINETUNE, there, "run.dir=others", f"run.resume={step}", "trainer.max_steps=3").code == 0

    longer = ["train", *FINETUNE, there, "trainer.max_steps=4"]
    outcome = call(*longer)
    # The newest checkpoint in that folder belongs to the rows of the other run folder.
    assert outcome.code == 2 and "(step_00000003 records count and hash)" in outcome.err
    assert call(*longer, "run.missing=accept").code == 0
    assert not (here / "runs" / "mine" / "checkpoints").exists()
    for run, at in (("mine", 4), (step, 2)):
        outcome = call("evaluate", f"run={run}", "output=scores.json", "precision=fp32")
        assert outcome.code == 0, outcome.err
        written = [json.loads(line) for line in (here / "runs/mine/metrics.jsonl").read_text().splitlines()]
        (loss,) = [row["val/loss"] for row in written if row["step"] == at]
        assert json.loads((here / "scores.json").read_text())["metrics"]["loss"] == pytest.approx(loss)
    assert call("export", "run=mine").code == 0
    assert (here / "runs" / "mine" / "export" / "model.safetensors").is_file()


def test_weights_of_a_run_start_another(here, call):
    assert call("train", *FINETUNE, "run.id=first").code == 0
    longer = [*FINETUNE, "init_from=first", "model=from_weights", "tokenizer=from_weights", "run.id=second"]
    kept = [override for override in longer if not override.startswith(("model.", "tokenizer.path"))]
    outcome = call("train", *kept)
    assert outcome.code == 0, outcome.err
    first, second = (
        json.loads((here / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("first", "second")
    )
    assert second["val/loss"] != first["val/loss"]


def test_a_run_is_read_by_its_average_its_weights_or_the_mean_of_its_last_checkpoints(here, call):
    kept = ["trainer.checkpoint_every_n_steps=1", "trainer.keep_last=2", "trainer.keep_best=0", "trainer.ema_decay=0.5"]
    assert call("train", *FINETUNE, *kept, "trainer.max_steps=3", "optimizer.lr=0.01").code == 0
    run = here / "runs" / "mine"
    loss = {}
    for weights in ("auto", "ema", "raw"):
        assert call("evaluate", "run=mine", f"weights={weights}", "precision=fp32", "output=scores.json").code == 0
        loss[weights] = json.loads((here / "scores.json").read_text())["metrics"]["loss"]
    assert loss["auto"] == loss["ema"] != loss["raw"]
    assert loss["ema"] == pytest.approx(json.loads((run / "summary.json").read_text())["last"]["val/loss"], rel=1e-5)

    exported = call("export", "run=mine", "weights=raw", "average_last=2", "output=mean")
    assert exported.code == 0, exported.err
    last, before = (read_full_state(run / "checkpoints" / f"step_0000000{step}", "raw") for step in (3, 2))
    mean = ((last["head.classifier.bias"].double() + before["head.classifier.bias"].double()) / 2).float()
    assert torch.equal(load_file(here / "mean" / "model.safetensors")["classifier.bias"], mean)
    chosen = ["init_from=mine", "init_weights=raw", "init_average_last=2", "run.id=second", "optimizer.lr=0"]
    assert call("train", *FINETUNE, *chosen).code == 0
    second = read_full_state(here / "runs" / "second" / "checkpoints" / "step_00000002")
    assert torch.equal(second["head.classifier.bias"], mean)

    assert_clear_error(call("export", "run=mine", "average_last=3"), "holds 2 complete checkpoints")
    assert_clear_error(call("predict", "run=mean", "text=x", "weights=raw"), "mean is not a run")
    assert_clear_error(call("evaluate", "run=second", "weights=ema"), "holds no moving average of the weights")


def test_check_does_all_checks_prints_what_would_run_and_writes_nothing(here, call):
    before = files_below(here)
    outcome = call("train", *FINETUNE, "check=true")
    assert (outcome.code, outcome.err, outcome.files) == (0, "", before)
    lines = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in outcome.out.splitlines()[1:])
    assert outcome.out.startswith("check passed; nothing was written\n")
    assert lines["run folder"] == "runs/mine: would start at step 0"
    assert (lines["train split"], lines["validation split"], lines["steps"]) == ("23 sequences", "9 sequences", "2")
    assert lines["data-parallel ranks"] == "1 under strategy=single"
    assert lines["plan"].startswith("4 sequences per step; micro-batches of 2,048 tokens")

    outcome = call("train", *FINETUNE, "check=8", "strategy=fsdp2", "precision=float8", "strategy.compile=inductor")
    assert outcome.code == 0 and "8 under strategy=fsdp2" in outcome.out and outcome.files == before
    assert_clear_error(call("train", *FINETUNE, "check=4", "strategy=tp"), "cannot be split over 4 ranks")
    assert_clear_error(call("train", *FINETUNE, "check=64", "strategy=ddp"), "23 training sequences for 64 ranks")
    assert_clear_error(call("train", *FINETUNE, "check=0"), "`check` is 0. It must be")
    assert_clear_error(call("train", *FINETUNE, "check=true", "data.train=nowhere.csv"), "nowhere.csv cannot be read")

    assert call("train", *FINETUNE).code == 0
    assert "runs/mine: already finished" in call("train", *FINETUNE, "check=true").out
    longer = [*FINETUNE, "trainer.max_steps=4", "check=true"]
    assert "runs/mine: would resume from step 2" in call("train", *longer).out


def test_a_checked_preparation_says_what_it_would_make_and_writes_nothing(here, call):
    (here / "texts.txt").write_text("\n\n".join(TEXTS))
    line = ["corpus=text", "corpus.sources.text.files=texts.txt", "vocabulary.vocab_size=80", "store=made"]
    before = files_below(here)
    outcome = call("prepare", *line, "check=true")
    assert (outcome.code, outcome.err, outcome.files) == (0, "", before)
    assert (
        "made: would be made" in outcome.out and f"1 file, {(here / 'texts.txt').stat().st_size} bytes" in outcome.out
    )
    assert_clear_error(
        call("prepare", *line, "check=true", "corpus.sources.text.files=no.txt"), "no file matches 'no.txt'"
    )
    assert call("prepare", *line).code == 0
    assert "made: exists already" in call("prepare", *line, "check=true").out


def test_the_commands_that_use_a_run_check_without_writing(here, call):
    assert call("train", *FINETUNE).code == 0
    (here / "out.jsonl").write_text("kept")
    before = files_below(here)
    for command, *overrides in (
        ("predict", "run=mine", "input=rows.csv", "output=out.jsonl"),
        ("evaluate", "run=mine", "output=out.jsonl"),
        ("export", "run=mine", "output=exported"),
    ):
        outcome = call(command, *overrides, "check=true")
        assert (outcome.code, outcome.err, outcome.files) == (0, "", before), command
        assert outcome.out.startswith("check passed; nothing was written\n"), command
        assert "SequenceClassificationTask" in outcome.out
        outcome = call(command, *overrides[:-1], "output=nowhere/out", "check=true")
        assert outcome.code == (0 if command == "export" else 2)
    assert (here / "out.jsonl").read_text() == "kept"


def test_an_unexpected_error_is_one_sentence_and_a_file_with_its_traceback(here, call, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr("framework.runs.assembly.build_parts", broken)
    outcome = call("train", *FINETUNE)
    assert outcome.code == 1
    first, second = outcome.err.splitlines()
    assert first == "RuntimeError: a bug of ours"
    file = Path(second.removeprefix("the full traceback is in "))
    text = file.read_text(encoding="utf-8")
    assert "in broken\n" in text and text.endswith("RuntimeError: a bug of ours\n")
    assert file.stat().st_mode & 0o077 == 0
    file.unlink()


def test_ctrl_c_before_the_training_is_one_word(here, call, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("framework.runs.assembly.build_parts", interrupted)
    outcome = call("train", *FINETUNE)
    assert (outcome.code, outcome.err) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("logger=null", "`seed` is 'x'"),
        ("adapter=null", "`seed` is 'x'"),
        ("augmentation=null", "`seed` is 'x'"),
        ("regularization=null", "`seed` is 'x'"),
        ("model=null", "Could not find 'model/null'. Available options in 'model': "),
        ("data=5", "Could not find 'data/5'. Available options in 'data': "),
        ("precision=true", "Could not find 'precision/true'. Available options in 'precision': auto, "),
        ("experiment=1.5", "Could not find 'experiment/1.5'."),
        ("hydra=null", "Could not override 'hydra'."),
    ],
)
def test_the_choice_of_a_group_is_a_name_whatever_it_looks_like(here, call, override, message):
    overrides = [each for each in FINETUNE if each != "logger=none"]
    assert_clear_error(call("train", *overrides, override, "seed=x"), message)


def test_a_secret_of_the_environment_does_not_reach_the_logger(here, call, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret-76543210")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    installed = [name for name in ("tensorboard", "mlflow") if importlib.util.find_spec(name)]
    arguments = [
        *(argument for argument in FINETUNE if argument != "logger=none"),
        f"logger=[{','.join(['wandb', 'csv', *installed])}]",
        "logger.mode=offline",
    ]
    outcome = call("train", *arguments, "tokenizer.fallback='folder/${oc.env:SOME_TOKEN}'")
    assert outcome.code == 0, outcome.err
    (record,) = (here / "runs" / "mine" / "wandb").rglob("*.wandb")
    # W&B's own process writes the file, on a busy machine only some time after the end of the run.
    deadline = time.monotonic() + 60
    while b"global_batch_size" not in record.read_bytes():
        assert time.monotonic() < deadline, record.read_bytes()[:100]
        time.sleep(0.05)
    saved = [path for path in (here / "runs").rglob("*") if path.is_file()]
    assert [path for path in saved if b"76543210" in path.read_bytes()] == []
