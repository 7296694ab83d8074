"""Students of runs, exports and published models: trained, resumed, exported as ordinary models; and bad teachers."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.support.commands.in_process import FINETUNE, LABELS, TEXTS, run_command, train_vocabulary, write_rows

STUDENT = ["regularization=distillation", "run.dir=runs", "trainer.log_every_n_steps=1"]
OWN = [each for each in FINETUNE if not each.startswith(("run.id", "model.num_heads", "trainer.max_steps"))]
TRAIN = [*OWN, "trainer.max_steps=4", "trainer.checkpoint_every_n_steps=2", "trainer.keep_last=9"]
TRAIN += ["trainer.report_examples=0", "trainer.val_every_n_steps=4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a teacher of 2 layers and 2 heads on two labels, its export, and other models."""
    folder = tmp_path_factory.mktemp("distilled")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        train_vocabulary(TEXTS, 80, folder / "tokenizer")
        train_vocabulary([text.upper() + " strange words" for text in TEXTS], 60, folder / "other_tokenizer")
        write_rows(folder / "rows.csv", TEXTS, LABELS)
        write_rows(folder / "named.csv", TEXTS, ["good" if label == "1" else "bad" for label in LABELS])
        wide = ["model.hidden_size=24", "model.num_layers=2", "model.num_heads=2", "task.pooling=cls"]
        assert run_command(monkeypatch, "train", *TRAIN, *wide, "run.id=teacher") == 0
        assert run_command(monkeypatch, "export", "run=teacher", "output=export") == 0
        config = transformers.BertConfig(
            vocab_size=80, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
        )
        torch.manual_seed(0)
        transformers.BertForMaskedLM(config).save_pretrained(folder / "published")
        for file in (folder / "tokenizer").iterdir():
            (folder / "published" / file.name).write_bytes(file.read_bytes())
        transformers.BertModel(config).save_pretrained(folder / "foreign")
        for file in (folder / "other_tokenizer").iterdir():
            (folder / "foreign" / file.name).write_bytes(file.read_bytes())
    return folder


def losses(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key.startswith("train/")} for row in rows if "train/loss" in row]


def test_a_student_of_a_run_resumes_bit_for_bit_and_notices_another_teacher(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    own = [*TRAIN, *STUDENT, "model.num_heads=2", "regularization.teacher=teacher", "run.id=student"]
    assert run_command(monkeypatch, "train", *own) == 0, capfd.readouterr().err
    out = capfd.readouterr().out.replace("\n", "")
    assert "teacher: runs/teacher/checkpoints/step_00000004, 2 layers of 24" in out
    rows = losses(place / "runs" / "student")
    assert len(rows) == 4 and all(row["train/distillation_loss"] > 0 for row in rows)
    resumed = [*own, "run.id=resumed", "run.resume=runs/student/checkpoints/step_00000002"]
    assert run_command(monkeypatch, "train", *resumed) == 0, capfd.readouterr().err
    assert losses(place / "runs" / "resumed") == rows[2:]
    # The teacher has changed: its newest checkpoint is another one.
    (place / "runs" / "teacher" / "checkpoints" / "step_00000004").rename(place / "hidden")
    try:
        assert run_command(monkeypatch, "train", *own, "trainer.max_steps=6") == 2
        assert "the teacher of the run in runs/student had fingerprint" in capfd.readouterr().err
    finally:
        (place / "hidden").rename(place / "runs" / "teacher" / "checkpoints" / "step_00000004")


def test_a_student_of_an_export_projects_hidden_states_and_is_exported_without_the_projection(
    place, monkeypatch, capfd
):
    monkeypatch.chdir(place)
    own = [*TRAIN, *STUDENT, "model.num_heads=2", "regularization.teacher=export", "regularization.match=hidden"]
    assert run_command(monkeypatch, "train", *own, "run.id=hidden") == 0, capfd.readouterr().err
    assert run_command(monkeypatch, "export", "run=hidden", "output=student") == 0, capfd.readouterr().err
    assert run_command(monkeypatch, "evaluate", "run=hidden", "split=validation") == 0, capfd.readouterr().err
    names = {name for file in (place / "student").glob("*.safetensors") for name in load_file(file)}
    assert names and not [name for name in names if "distillation" in name]
    # Layers of the student: a smaller one starts from one of its teacher's layers.
    smaller = [*TRAIN, *STUDENT, "model=from_weights", "tokenizer=from_weights", "init_from=export", "init_layers=[1]"]
    smaller = [each for each in smaller if not each.startswith(("model.", "tokenizer.path"))]
    smaller += ["regularization.teacher=export", "regularization.match=relations", "run.id=smaller"]
    assert run_command(monkeypatch, "train", *smaller) == 0, capfd.readouterr().err
    assert "layers 1 of 2" in capfd.readouterr().out


def test_a_pretrained_student_learns_the_words_of_a_published_model(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    (place / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (place / "texts" / f"{number}.txt").write_text(f"{text}. {text} again.", encoding="utf-8")
    prepare = ["corpus=text", "corpus.sources.text.files=texts/*.txt", "num_workers=0", "store=store"]
    assert run_command(monkeypatch, "prepare", *prepare, "vocabulary=given", "vocabulary.path=tokenizer") == 0
    own = ["experiment=pretrain_demo", "data.store=store", "logger=none", "precision=fp32", "strategy=single", "seed=2"]
    own += ["task.nsp=false", "task.sequence_length=16", "trainer.max_steps=3", "trainer.global_batch_size=4"]
    own += ["trainer.val_every_n_steps=3", "data.validation_fraction=0.2", "trainer.checkpoint_every_n_steps=3"]
    own += [each for each in TRAIN if each.startswith("model.")] + ["model.num_heads=2", "run.id=words", *STUDENT]
    assert run_command(monkeypatch, "train", *own, "regularization.teacher=published") == 0, capfd.readouterr().err
    assert all(row["train/distillation_loss"] > 0 for row in losses(place / "runs" / "words"))


def test_embeddings_follow_a_model_its_vectors_or_scores(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    own = [*TRAIN, "task=embedding", "data=text_pairs", "model.num_heads=2", "model.hidden_size=8", "run.dir=runs"]
    labelled = ["data.pair_column=null", "data.label_column=label", "regularization=embedding_distillation"]
    narrow = [each for each in own if not each.startswith(("model.hidden_size=16", "task.pooling"))] + labelled
    model = ["regularization.teacher=published", "run.id=vectors_of_model"]
    assert run_command(monkeypatch, "train", *narrow, *model) == 0, capfd.readouterr().err
    assert all(row["train/distillation_loss"] > 0 for row in losses(place / "runs" / "vectors_of_model"))
    assert run_command(monkeypatch, "export", "run=vectors_of_model", "output=embedder") == 0
    assert not [name for name in load_file(place / "embedder" / "model.safetensors") if "distillation" in name]
    # A run or an export writes its vectors.
    written = ["run=embedder", "input=rows.csv", "output=vectors.jsonl", "keep_columns=[text,label]"]
    assert run_command(monkeypatch, "predict", *written) == 0, capfd.readouterr().err
    column = ["data.train=vectors.jsonl", "data.vector_column=embedding", "run.id=vectors_of_data"]
    assert run_command(monkeypatch, "train", *narrow, *column) == 0, capfd.readouterr().err
    assert all(row["train/distillation_loss"] > 0 for row in losses(place / "runs" / "vectors_of_data"))
    assert run_command(monkeypatch, "train", *narrow, "run.id=none") == 2
    assert "regularization.teacher is null, and data.vector_column too" in capfd.readouterr().err

    rows = [{"text": text, "pair": TEXTS[-1], "not": [TEXTS[3]], "scores": [2, -1.5]} for text in TEXTS[:20]]
    (place / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scored = [*own, "data.train=scored.jsonl", "data.negative_columns=[not]", "task.objective=margin_mse"]
    scored += ["data.teacher_column=scores", "run.id=scores"]
    assert run_command(monkeypatch, "train", *scored) == 0, capfd.readouterr().err
    assert losses(place / "runs" / "scores")[-1]["train/loss"] > 0
    rows[16]["scores"].append(0)
    (place / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run_command(monkeypatch, "train", *scored, "run.id=bad") == 2
    assert "scored.jsonl, row 17 (line 17): 'scores' has 3 scores for 2 candidates" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["regularization.teacher=nobody"], "there is no run 'nobody' in runs"),
        (["regularization.teacher=mine"], "regularization.teacher is mine, which is this run itself"),
        (["regularization.teacher=foreign"], "the teacher foreign has the tokenizer {other}, and the student {own}"),
        (["regularization.teacher=published"], "the teacher published has a head for pretraining, and the student one"),
        (["regularization.teacher=teacher", "data.train=named.csv"], "has the labels 0, 1, and the student bad, good"),
        (
            ["regularization.teacher=published", "regularization.match=relations"],
            "the teacher has 1 attention heads, the student 2, and relations have 1 heads",
        ),
        (["regularization.teacher=teacher", "strategy=tp", "check=2"], "strategy=tp splits each matrix product over 2"),
    ],
    ids=["missing", "itself", "tokenizer", "head", "labels", "heads", "tp"],
)
def test_a_teacher_that_does_not_fit_is_rejected_before_training(place, overrides, message, monkeypatch, capfd):
    from framework.data.tokenization.tokenizer import Tokenizer

    monkeypatch.chdir(place)
    own, other = (Tokenizer.from_folder(name).fingerprint for name in ("tokenizer", "foreign"))
    assert run_command(monkeypatch, "train", *TRAIN, *STUDENT, "model.num_heads=2", "run.id=mine", *overrides) == 2
    error = capfd.readouterr().err
    assert message.format(own=own, other=other) in error
    assert "Traceback" not in error
    assert not (place / "runs" / "mine").exists()
