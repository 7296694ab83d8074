"""Runs with phases: one folder and one count of steps, settings by phase, and the same bits after any interruption."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from framework import train
from framework.checkpoint.load import read_full_state
from framework.config.command import resolve_config
from framework.config.resolvers import conf_folder, register_resolvers
from framework.distributed.processes.environment import ProcessInfo
from framework.errors import ConfigError
from framework.modules.encoder_module import EncoderModule
from framework.runs import build
from framework.runs.assembly import assemble_run
from framework.runs.weights import find_weights
from tests.support.commands.torchrun import WAIT_SECONDS
from tests.support.processes.ranks import Ranks
from tests.support.training.tiny_run import arguments, make_store, rows, summary

PHASES = [
    "phases.main={trainer: {max_steps: 7}}",
    "phases.context={task: {sequence_length: 48}, model: {rope_theta_global: 160000.0}, "
    "optimizer: {adamw: {lr: 1e-4}}, trainer: {max_steps: 5, global_batch_size: 5}}",
    "phases.decay={optimizer_state: reset, schedule: {_target_: framework.optim.schedules.Linear}, "
    "trainer: {max_steps: 4}}",
]
ENDS = {"main": 7, "context": 12, "decay": 16}
LAST = "step_00000016"


class Killed(BaseException):
    """Stands for the end of the process: no handler of a run expects it."""


def phased(store: Path, runs: Path, strategy: str = "single") -> list[str]:
    own = [each for each in arguments(store, runs, "run", strategy) if "max_steps" not in each]
    return [*own, *(f"+{phase}" for phase in PHASES)]


def start(store: Path, runs: Path, *overrides: str) -> Path:
    return train.run([*phased(store, runs), *overrides])


def weights(run: Path, step: str = LAST) -> dict[str, Any]:
    return read_full_state(run / "checkpoints" / step)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("phases") / "data")


@pytest.fixture(scope="module")
def finished(store: Path) -> Path:
    """Returns the folder of a run of three phases without interruption."""
    return start(store, store.parent / "runs")


def test_each_phase_trains_under_its_own_settings_and_steps_are_counted_over_the_run(finished: Path):
    values = {row["step"]: row for row in rows(finished)}
    assert sorted(values) == list(range(1, 17))
    assert summary(finished)["ended"] == "finished" and summary(finished)["max_steps"] == 16
    # Constant, then a decay to 0 in the last fifth of the phase; the last phase decays from its first step on.
    rates = [values[step]["optim/lr"] for step in range(1, 17)]
    assert rates[7] == pytest.approx(1e-4) and rates[0] == pytest.approx(2e-3)
    assert rates[12:] == pytest.approx([2e-3, 1.5e-3, 1e-3, 0.5e-3])
    tokens = [values[step]["train/tokens"] - values[step - 1]["train/tokens"] for step in range(2, 17)]
    assert sum(tokens[6:11]) / 5 < sum(tokens[:6]) / 6, "5 sequences of 48 tokens are fewer than 9 of 32"


def test_the_last_checkpoint_of_each_phase_is_kept_and_opens_with_the_model_of_its_phase(finished: Path):
    saved = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    assert {name: phase["last_step"] for name, phase in saved["phases"].items()} == ENDS
    report = (finished / "report.html").read_text(encoding="utf-8")
    assert "main up to step 7, context up to step 12, decay up to step 16" in report
    thetas = {}
    for name, step in ENDS.items():
        source = str(finished / "checkpoints" / f"step_{step:08d}")
        thetas[name] = find_weights(source, finished.parent).config.rope_theta_global
    assert thetas == {"main": 10_000.0, "context": 160_000.0, "decay": 10_000.0}


def test_a_run_killed_ten_times_has_the_same_bits(
    finished: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train_step = EncoderModule.training_step
    waiting = [1, 3, 6, 7, 8, 10, 11, 12, 13, 15]  # checkpoints are at multiples of 3 and at the ends 7 and 12

    def killed(module: EncoderModule, batch: Any, batch_idx: int) -> None:
        if waiting and batch.step == waiting[0]:
            waiting.pop(0)
            raise Killed
        train_step(module, batch, batch_idx)

    monkeypatch.setattr(EncoderModule, "training_step", killed)
    while waiting:
        with pytest.raises(Killed):
            start(store, tmp_path)
    run = start(store, tmp_path)
    assert (run / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    expected = weights(finished)
    assert all(value.equal(expected[name]) for name, value in weights(run).items())


def test_a_run_killed_in_a_phase_goes_on_with_two_processes(
    finished: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train_step = EncoderModule.training_step

    def killed(module: EncoderModule, batch: Any, batch_idx: int) -> None:
        if batch.step == 10:
            raise Killed
        train_step(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(EncoderModule, "training_step", killed)
        with pytest.raises(Killed):
            start(store, tmp_path)
    ranks = Ranks(phased(store, tmp_path, "ddp"), 2, tmp_path / "output.txt")
    assert ranks.wait(WAIT_SECONDS) == [0, 0], ranks.read_output()
    starts = json.loads((tmp_path / "run" / "provenance.json").read_text())["starts"]
    phases = [(each["phase"], each["world_size"]) for each in starts]
    assert phases == [("main", 1), ("context", 1), ("context", 2), ("decay", 2)]
    for ours, theirs in zip(rows(tmp_path / "run"), rows(finished), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5), ours["step"]


def test_a_finished_run_trains_no_step_and_other_phases_are_another_run(finished: Path, store: Path):
    before = (finished / "summary.json").stat().st_mtime_ns
    assert start(store, finished.parent) == finished
    assert (finished / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"`phases\.decay\.trainer\.max_steps` was 4 and is now 5"):
        start(store, finished.parent, "phases.decay.trainer.max_steps=5")
    starts = json.loads((finished / "provenance.json").read_text())["starts"]
    assert [each["phase"] for each in starts] == list(ENDS)


def test_phases_share_the_starting_weights_which_are_read_once(
    finished: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reads = []
    monkeypatch.setattr(build, "find_weights", lambda *source: reads.append(source) or find_weights(*source))
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("train", [*phased(store, tmp_path), f"init_from={finished}"])
    phases = assemble_run(resolve_config(composed), ProcessInfo(), "cpu").phases
    assert len(reads) == 1 and len(phases) == 3
    assert all(phase.parts.weights is phases[0].parts.weights is not None for phase in phases)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("+phases.context.seed=3", "`phases.context.seed` cannot change within a run"),
        ("+phases.context.optimizer_state=drop", "`phases.context.optimizer_state` is 'drop'. It is keep"),
        ("+phases.main.optimizer_state=reset", "`phases.main.optimizer_state` is 'reset'. It is keep"),
        ("+phases.context.model.num_layers=1", "phase context: parameter encoder.layers.1.*All phases train the same"),
        ("+phases.context.trainer.max_stepz=1", "phase context: .*max_stepz"),
        ("+phases.context.trainer.freeze=[encoder.embeddings.*]", "`trainer.freeze` differs from phase main"),
        (
            "+phases.decay.optimizer={_target_: framework.optim.parameter_groups.AdamW, lr: 1e-3}",
            "`optimizer` differs",
        ),
        ("trainer.early_stopping_patience=2", "phase main: `trainer.early_stopping_patience` is set"),
        ("phases.context=3", "`phases.context` is 3. A phase is a mapping"),
        ("phases=3", "`phases` is 3. It maps the name of each phase"),
    ],
)
def test_phases_that_cannot_follow_each_other_are_errors_before_anything_is_written(
    change: str, message: str, store: Path, tmp_path: Path
):
    with pytest.raises(ConfigError, match=message):
        start(store, tmp_path / "runs", change)
    assert not (tmp_path / "runs").exists()
