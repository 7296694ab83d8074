"""Runs of replaced-token detection: same steps on any ranks, exact resume, exports and fine-tuning from them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir

from framework import evaluate, export, train
from framework.batch import StepBatch
from framework.checkpoint.load import read_full_state
from framework.config.checks import check_task_is_split
from framework.config.command import resolve_config
from framework.config.resolvers import conf_folder, register_resolvers
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.environment import ProcessInfo
from framework.errors import ConfigError
from framework.models.encoder import TransformerEncoder
from framework.modules.encoder_module import EncoderModule
from framework.modules.step_runner import StepRunner
from framework.runs.assembled_run import AssembledPhase
from framework.runs.assembly import assemble_run
from framework.runs.session import _step_flops
from framework.runs.weights import find_weights
from framework.tasks.pretraining.generator import GeneratorSize
from framework.tasks.pretraining.replaced_tokens import ReplacedTokensTask
from framework.tasks.task import TaskModel
from tests.support.models import peers
from tests.support.models.loading import load_into
from tests.support.processes.ranks import Ranks
from tests.support.training.tiny_run import arguments, make_store, rows

STEPS = 7
WORDS = "encoder.embeddings.word_embeddings.weight"
OWN_WORDS = "head.generator.encoder.embeddings.word_embeddings.weight"


def options(store: Path, runs: Path, run_id: str, strategy: str, *overrides: str) -> list[str]:
    """Returns arguments of a run of an encoder of ELECTRA's shape, with tables of half its width."""
    own = [each for each in arguments(store, runs, run_id, strategy) if "max_steps" not in each]
    return [
        *(*own, "task=replaced_tokens", "model=electra_small", "model.embedding_size=16", "task.generator.width=0.5"),
        *("model.max_position_embeddings=64", "model.embedding_dropout=0.1", f"trainer.max_steps={STEPS}"),
        *("task.generator.layers=0.5", "trainer.report_explanations=0", "trainer.keep_last=3", *overrides),
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("replaced_tokens") / "data")


def of(*sharings: str) -> pytest.MarkDecorator:
    """Parametrizes a test by the sharing of the run `finished`."""
    return pytest.mark.parametrize("finished", sharings, indirect=True, scope="module")


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest, store: Path) -> tuple[str, Path]:
    """Returns the sharing and the folder of a run in one process."""
    run_id = request.param
    return run_id, train.run(options(store, store.parent / "runs", run_id, "single", f"task.sharing={run_id}"))


def check_equal(run: Path, expected: Path) -> None:
    for ours, theirs in zip(rows(run), rows(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@of("embeddings")
def test_steps_do_not_depend_on_micro_batches(finished: tuple[str, Path], store: Path, tmp_path: Path):
    sharing, run = finished
    other = options(store, tmp_path, "other", "single", f"task.sharing={sharing}", "trainer.micro_batch_tokens=320")
    check_equal(train.run(other), run)


@pytest.mark.parametrize(
    ("finished", "strategy", "num_ranks"),
    [("embeddings", "ddp", 2), ("embeddings", "hsdp", 4), ("gradient_disentangled", "fsdp2", 2)],
    indirect=["finished"],
    scope="module",
)
def test_steps_do_not_depend_on_ranks(
    finished: tuple[str, Path], strategy: str, num_ranks: int, store: Path, tmp_path: Path
):
    sharing, run = finished
    sizes = ["strategy.replicate_size=2"] if strategy == "hsdp" else []
    ranks = Ranks(
        options(store, tmp_path, "ranks", strategy, f"task.sharing={sharing}", *sizes), num_ranks, tmp_path / "output"
    )
    assert ranks.wait(240.0) == [0] * num_ranks, ranks.read_output()
    check_equal(tmp_path / "ranks", run)


@of("gradient_disentangled")
def test_a_killed_run_has_the_same_bits(
    finished: tuple[str, Path], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sharing, run = finished
    train_step, waiting = EncoderModule.training_step, [4]

    def killed(module: EncoderModule, batch: Any, batch_idx: int) -> None:
        if waiting and batch.step == waiting[0]:
            waiting.pop()
            raise KeyboardInterrupt
        train_step(module, batch, batch_idx)

    monkeypatch.setattr(EncoderModule, "training_step", killed)
    again = options(store, tmp_path, "killed", "single", f"task.sharing={sharing}")
    with pytest.raises(BaseException):  # noqa: B017  how an interrupt is reported is not the subject
        train.run(again)
    assert not waiting
    resumed = train.run(again)
    assert (resumed / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    name = f"step_{STEPS:08d}"
    ours, theirs = (read_full_state(each / "checkpoints" / name) for each in (resumed, run))
    assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)


def test_tables_that_follow_are_a_sum_with_separate_gradients(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The stored table is E_G + E_delta: here both are parameters of their own, updated by torch's AdamW."""
    settings = ["task.sharing=gradient_disentangled", "optimizer=adamw", "optimizer.lr=0.01", "schedule=constant"]
    settings += ["optimizer.weight_decay=0.1", "trainer.gradient_clip=0"]
    seen: list[list[torch.Tensor]] = []
    compute = StepRunner._compute_gradients

    def watched(runner: StepRunner, *given: Any) -> Any:
        result = compute(runner, *given)
        tables = [dict(runner.model.named_parameters())[name] for name in (OWN_WORDS, WORDS)]
        seen.append([tensor.detach().clone() for table in tables for tensor in (table, table.grad.to_dense())])
        return result

    monkeypatch.setattr(StepRunner, "_compute_gradients", watched)
    run = train.run(options(store, tmp_path, "followed", "single", *settings))
    state = read_full_state(run / "checkpoints" / f"step_{STEPS:08d}")
    assert torch.equal(seen[0][0], seen[0][2])
    generator = torch.nn.Parameter(seen[0][0].clone())
    delta = torch.nn.Parameter(torch.zeros_like(generator))
    optimizer = torch.optim.AdamW([generator, delta], lr=0.01, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
    rates = [row["optim/lr"] for row in rows(run)]
    for rate, (_, of_generator, _, of_discriminator) in zip(rates, seen, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        generator.grad, delta.grad = of_generator, of_discriminator
        optimizer.step()
    torch.testing.assert_close(state[OWN_WORDS], generator.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(state[WORDS], (generator + delta).detach(), rtol=1e-4, atol=1e-6)
    assert float(delta.detach().abs().max()) > 0.01


@of("embeddings", "gradient_disentangled")
def test_evaluation_of_the_run_and_of_its_export(finished: tuple[str, Path], tmp_path: Path):
    _, run = finished
    expected = {key: value for key, value in rows(run)[-1].items() if key.startswith("val/")}
    assert {"val/generator_loss", "val/discriminator_loss", "val/replaced_recall"} <= expected.keys()
    evaluate.run([f"run={run}", "precision=fp32", f"output={tmp_path / 'metrics.json'}"])
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    assert {f"val/{key}": value for key, value in metrics.items()} == pytest.approx(expected, rel=1e-5)


@of("embeddings", "gradient_disentangled")
@torch.no_grad()
def test_an_export_gives_the_logits_of_transformers(finished: tuple[str, Path], store: Path, tmp_path: Path):
    _, run = finished
    folder = export.run([f"run={run}", f"output={tmp_path / 'export'}"])
    peer, info = transformers.AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert type(peer) is transformers.ElectraForPreTraining
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (peer.config.embedding_size, peer.config.hidden_size) == (16, 32)
    model, weights = model_of(str(run), tmp_path), find_weights(str(folder), tmp_path)
    assert {name for name in weights.heads if not name.startswith("generator.")} == {
        f"discriminator.{layer}.{kind}" for layer in ("dense", "scores") for kind in ("weight", "bias")
    }
    sequences = [torch.randint(5, weights.config.vocab_size, (length,)) for length in (9, 17)]
    scores = model(peers.pack(sequences))["discriminator"]
    inputs = peers.pad(sequences, 0)
    expected = peers.unpadded(peer.eval()(**inputs).logits, inputs)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    exported = dict(model_of(str(folder), tmp_path).named_parameters())
    assert all(torch.equal(exported[name], value) for name, value in model.named_parameters())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == weights.config.vocab_size


def model_of(source: str, runs: Path) -> TaskModel:
    """Returns the model of a run or an export, built by the task, with all of its weights."""
    weights = find_weights(source, runs)
    task = ReplacedTokensTask(GeneratorSize(0.5, 0.5), sequence_length=32)
    encoder = TransformerEncoder(weights.config)
    model = TaskModel(encoder, task.build_head(encoder, weights.config))
    assert load_into(model, weights) == []
    return model


@of("gradient_disentangled")
def test_fine_tuning_starts_from_the_discriminator(
    finished: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _, run = finished
    texts = [f"ba{word} kera mi{'ra' * index}.,{index % 2}" for index, word in enumerate(("ra", "se", "ti", "vo") * 4)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *texts]), encoding="utf-8")
    tuned = train.run(
        [
            *("experiment=finetune_demo", "data=table", f"data.train={tmp_path / 'rows.csv'}", "model=from_weights"),
            *("data.validation_fraction=0.25", f"init_from={run}", "tokenizer=from_weights", "logger=none"),
            *("precision=fp32", "optimizer.lr=0.0", "trainer.max_steps=1", "trainer.max_epochs=null", "run.id=tuned"),
            *(f"run.dir={tmp_path}", "trainer.report_explanations=0", "task.max_length=16"),
        ]
    )
    assert (
        "unused weights of the source: generator, discriminator.dense, discriminator.scores\n"
        in capsys.readouterr().out
    )
    before, after = (
        read_full_state(next(iter(sorted((each / "checkpoints").glob("step_*"), reverse=True))))
        for each in (run, tuned)
    )
    encoder = {name for name in before if name.startswith("encoder.")}
    assert encoder == {name for name in after if name.startswith("encoder.")}
    assert all(after[name].equal(before[name]) for name in encoder)
    assert not any("generator" in name for name in after)


def test_a_published_discriminator_is_trained_further(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer = Tokenizer.from_folder(store / "tokenizer")
    shape = {"vocab_size": tokenizer.vocab_size, "embedding_size": 16, "intermediate_size": 48}
    config = transformers.ElectraConfig(**peers.SHAPE, **shape, max_position_embeddings=64)
    transformers.ElectraForPreTraining(config).save_pretrained(tmp_path / "published")
    shutil.copy(store / "tokenizer" / "tokenizer.json", tmp_path / "published")
    own = [each for each in options(store, tmp_path, "on", "single") if "model." not in each and "model=" not in each]
    run = train.run(
        [*own, "model=from_weights", f"init_from={tmp_path / 'published'}", "task.sharing=gradient_disentangled"]
    )
    printed = capsys.readouterr().out
    assert "head reused: discriminator.dense, discriminator.scores; head new: generator\n" in printed
    values = rows(run)
    assert values[-1]["train/loss"] < values[0]["train/loss"]


def test_flops_count_the_generator(store: Path, tmp_path: Path):
    parts = assembled(store, tmp_path).parts
    count = _step_flops(parts)
    assert count is not None
    batch = parts.sources["train"].build(StepSequences(np.zeros(2, int), np.arange(2), np.arange(2)), 0)
    lengths, predicted = list(batch.lengths), batch.counts["generator"]
    # Discriminator: 2 layers of 4 x 32 x 32 + 2 x 32 x 48. Generator: 1 layer of half the width, and its decoder.
    linear = 2 * (4 * 32 * 32 + 2 * 32 * 48) + 1 * (4 * 16 * 16 + 2 * 16 * 24)
    attention = 12 * (2 * 32 + 1 * 16) * sum(length * length for length in lengths)
    decoder = 16 * (16 + parts.config.vocab_size) * predicted
    assert count(StepBatch(0, 0, (batch,))) == 6 * (linear * sum(lengths) + decoder) + attention


def test_a_check_names_the_generator(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train.run([*options(store, tmp_path, "checked", "single"), "check=true"])
    # 1 layer of 4 x 16 x 16 + 2 x 16 x 24 weights, 4 x 16 + 24 + 16 biases and 4 x 16 of norms; the transform of the
    # decoder to the tables of width 16, its norm, and a bias for each word. Equal widths need no projection.
    own = 1_792 + 104 + 64 + (16 * 16 + 16) + 32 + Tokenizer.from_folder(store / "tokenizer").vocab_size
    assert f"1 layer of 16, {own:,} parameters of its own" in capsys.readouterr().out


def assembled(store: Path, runs: Path, *overrides: str) -> AssembledPhase:
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("train", options(store, runs, "assembled", "single", *overrides))
    return assemble_run(resolve_config(composed), ProcessInfo(), "cpu").phases[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["regularization=r_drop"], "ReplacedTokensTask has no class scores"),
        (
            ["regularization=distillation", "regularization.teacher=x", "regularization.match=hidden"],
            "ReplacedTokensTask rewrites the batch",
        ),
        (["privacy=dp_sgd"], "ReplacedTokensTask"),
        (["task.sequence_length=128"], "sequences of train may have 128 tokens"),
    ],
)
def test_settings_that_do_not_fit_are_errors_before_a_model_is_built(
    overrides: list[str], message: str, store: Path, tmp_path: Path
):
    with pytest.raises(ConfigError, match=message):
        assembled(store, tmp_path, *overrides)


def test_tensor_parallel_is_refused():
    task = ReplacedTokensTask(GeneratorSize())
    with pytest.raises(ConfigError, match="The head of ReplacedTokensTask cannot be split over 2 ranks"):
        check_task_is_split(task, 2)
