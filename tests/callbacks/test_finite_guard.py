"""A step with non-finite values: no update on any rank; the run stops, skips or rolls back, also after every kill."""

import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from framework.callbacks.cadence import Cadence
from framework.callbacks.finite_guard import NonFinite
from framework.callbacks.preemption import Preemption
from framework.checkpoint.integrity import mark_complete
from framework.checkpoint.layout import complete_checkpoints, newest_complete
from framework.checkpoint.load import read_full_state
from framework.checkpoint.retention import Retention
from framework.errors import FrameworkError
from framework.modules.encoder_module import EncoderModule
from framework.optim import combined
from tests.support.processes.workers import WorkerPool
from tests.support.training.background_saves import wait_for_write
from tests.support.training.bad_sequences import bad_module
from tests.support.training.cuts import CutAt, CutError
from tests.support.training.toy_run import train

CADENCE = Cadence(max_steps=9, log_every_n_steps=4, validate_every_n_steps=5, checkpoint_every_n_steps=2)
SKIP, ROLL_BACK = NonFinite("skip"), NonFinite("roll_back")
KEEP = Retention(keep_last=9)

Values = dict[str, Tensor]


@pytest.fixture(params=["at_once", "late"])
def decision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the host decide before each update, or the device, whose decision the host reads later."""
    if request.param == "late":
        monkeypatch.setattr(combined, "HOLDING_DEVICES", ("cpu",))


by_both = pytest.mark.usefixtures("decision")


class Watch(pl.Callback):
    """Stores the values of this rank after each step."""

    def __init__(self) -> None:
        self.after: dict[int, Values] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:  # type: ignore[override]
        self.after[trainer.global_step] = local_values(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.after[trainer.global_step] = local_values(pl_module)
        assert all(parameter.grad is None for parameter in pl_module.parameters())


def local_values(module: EncoderModule) -> Values:
    tensors = dict(module.model.named_parameters()) | module.optimizer.named_state()
    return {name: getattr(t, "_local_tensor", t).detach().clone() for name, t in tensors.items()}


def same(ours: Values, theirs: Values) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rows(run_folder: Path) -> dict[int, dict[str, Any]]:
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines)}


def summary(run_folder: Path) -> dict[str, Any]:
    return json.loads((run_folder / "summary.json").read_text())


def said(text: str) -> list[str]:
    return [line for line in text.splitlines() if "gradient norm is nan" in line]


def skipped_in_state(folder: Path) -> list[list[int]]:
    state = json.loads((folder / "state.json").read_text())
    return state["callbacks"].get("FiniteGuard", {}).get("skipped_steps", [])


def run_to_the_stop(run_folder: str, strategy: str, only_backward: bool) -> tuple[str, bool]:
    watch, module = Watch(), bad_module([14], only_backward)
    cadence = Cadence(max_steps=5, log_every_n_steps=1, checkpoint_every_n_steps=1)
    with pytest.raises(FrameworkError) as caught:
        train(Path(run_folder), strategy, cadence, extra_callbacks=(watch,), module=module)
    return str(caught.value), same(local_values(module), watch.after[2])


def check_stopped(run_folder: Path, message: str) -> None:
    assert list(rows(run_folder)) == [1, 2]
    assert newest_complete(run_folder / "checkpoints").name == "step_00000002"  # type: ignore[union-attr]
    assert (summary(run_folder)["ended"], summary(run_folder)["steps"]) == ("failed", 2)
    assert message in summary(run_folder)["why"]


@by_both
def test_the_run_stops_before_the_update_and_names_step_and_sequences(tmp_path: Path) -> None:
    message, unchanged = run_to_the_stop(str(tmp_path), "single", False)
    assert unchanged
    assert message.startswith("Step 3: the loss is nan and the gradient norm is nan.")
    assert "micro-batches of sequence ids" in message and "14" in message
    check_stopped(tmp_path, message)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("only_backward", [False, True])
def test_all_ranks_stop_although_only_one_rank_has_non_finite_values(
    strategy: str, only_backward: bool, tmp_path: Path, workers: WorkerPool
) -> None:
    results = workers.run(run_to_the_stop, 2, str(tmp_path), strategy, only_backward)
    (message, first_unchanged), (second_message, second_unchanged) = results
    assert first_unchanged and second_unchanged
    assert message == second_message
    if only_backward:
        assert "the gradient norm is nan" in message and "the loss is nan" not in message
        assert "the gradient is not. The step has sequence ids 12 to 17." in message
    else:
        assert message.count("on rank") == 1 and "14" in message.partition("on rank")[2]
    check_stopped(tmp_path, message)


def run_watched(run_folder: str, strategy: str, bad_ids: list[int], action: NonFinite) -> tuple[dict[int, Values], str]:
    watch = Watch()
    train(
        Path(run_folder),
        strategy,
        CADENCE,
        extra_callbacks=(watch,),
        module=bad_module(bad_ids),
        non_finite=action,
        retention=KEEP,
    )
    return watch.after, ""


@by_both
def test_a_skipped_step_counts_but_changes_no_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after, _ = run_watched(str(tmp_path), "single", [14], SKIP)
    assert list(after) == list(range(10))
    assert same(after[3], after[2])
    assert all(not same(after[step], after[step - 1]) for step in (1, 2, 4, 5, 6, 7, 8, 9))
    assert after[9]["encoder.embeddings.norm.weight.step"] == 8.0

    (line,) = said(capsys.readouterr().out)
    assert line.startswith(
        "step 3: the loss is nan and the gradient norm is nan. This update is skipped (1 of at most 10"
    )
    assert "14" in line.partition("sequence ids ")[2]

    assert sorted(rows(tmp_path)) == [3, 4, 5, 8, 9]  # 4, 8 and 9 are due, 5 has a validation
    row = rows(tmp_path)[3]
    assert (row["train/loss"], row["optim/grad_norm"], row["optim/skipped_steps"]) == (None, None, 1)
    assert [step for step, other in rows(tmp_path).items() if "optim/skipped_steps" in other] == [3]
    assert summary(tmp_path)["skipped_steps"] == summary(tmp_path)["last"]["optim/skipped_steps"] == 1
    assert summary(tmp_path)["ended"] == "finished"
    by_step = {folder.name[-1]: skipped_in_state(folder) for folder in complete_checkpoints(tmp_path / "checkpoints")}
    assert by_step == {"2": [], "4": [[3, 3]], "6": [[3, 3]], "8": [[3, 3]], "9": [[3, 3]]}


def test_steps_after_a_skipped_one_equal_those_of_a_run_that_starts_there(tmp_path: Path) -> None:
    """Resumes the weights of step 2 at step 3: data, masks and schedule must be those of step 3."""
    run_watched(str(tmp_path / "skipped"), "single", [14], SKIP)
    checkpoint = renumbered(tmp_path / "skipped" / "checkpoints" / "step_00000002", tmp_path / "step_00000003", 3)
    train(tmp_path / "other", cadence=CADENCE, checkpoint=checkpoint)
    ours, theirs = rows(tmp_path / "skipped"), rows(tmp_path / "other")
    for step in (4, 5, 8, 9):
        assert without_tokens(ours[step]) == without_tokens(theirs[step])


def renumbered(folder: Path, target: Path, step: int) -> Path:
    """Writes a checkpoint whose state names another step."""
    shutil.copytree(folder, target)
    state = json.loads((target / "state.json").read_text())
    (target / "state.json").write_text(json.dumps(state | {"step": step}))
    (target / "COMPLETE").unlink()
    mark_complete(target)
    return target


def without_tokens(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "train/tokens"}


@by_both
def test_a_rollback_continues_after_the_window_with_the_weights_of_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 6 (sequences 30 to 35) is bad, so that the weights of step 4 make step 7."""
    after, _ = run_watched(str(tmp_path / "back"), "single", [31], ROLL_BACK)
    assert same(after[6], after[4]) and not same(after[5], after[4])
    (line,) = said(capsys.readouterr().out)
    assert ". Weights and optimizer are restored from step 4, and steps 5 to 6 are skipped (1 of at most 10" in line
    assert rows(tmp_path / "back")[6]["optim/skipped_steps"] == 2
    assert 5 in rows(tmp_path / "back"), "measured values are kept"
    assert skipped_in_state(tmp_path / "back" / "checkpoints" / "step_00000006") == [[5, 6]]
    assert skipped_in_state(tmp_path / "back" / "checkpoints" / "step_00000004") == []
    assert summary(tmp_path / "back")["skipped_steps"] == 2

    checkpoint = renumbered(tmp_path / "back" / "checkpoints" / "step_00000004", tmp_path / "step_00000006", 6)
    train(tmp_path / "other", cadence=CADENCE, checkpoint=checkpoint)
    for step in (8, 9):
        assert without_tokens(rows(tmp_path / "back")[step]) == without_tokens(rows(tmp_path / "other")[step])


@by_both
def test_no_step_is_counted_twice_if_two_windows_go_back_to_one_checkpoint(tmp_path: Path) -> None:
    cadence = Cadence(max_steps=9, log_every_n_steps=9, checkpoint_every_n_steps=4)
    train(tmp_path, cadence=cadence, module=bad_module([31, 37]), non_finite=ROLL_BACK)  # steps 6 and 7
    assert skipped_in_state(tmp_path / "checkpoints" / "step_00000008") == [[5, 6], [7, 7]]
    assert {step: row["optim/skipped_steps"] for step, row in rows(tmp_path).items() if step < 9} == {6: 2, 7: 3}


@by_both
def test_without_a_checkpoint_to_roll_back_to_the_step_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after, _ = run_watched(str(tmp_path), "single", [3], ROLL_BACK)
    assert same(after[1], after[0])
    (line,) = said(capsys.readouterr().out)
    assert "This update is skipped, because there is no checkpoint to roll back to yet" in line
    assert skipped_in_state(tmp_path / "checkpoints" / "step_00000002") == [[1, 1]]


@by_both
def test_the_limit_ends_the_run_and_a_larger_one_lets_it_continue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [3, 14, 31]  # steps 1, 3 and 6
    with pytest.raises(FrameworkError, match=r"Step 6: .* number 3 of this run's .*max_non_finite_steps is 2"):
        train(tmp_path, cadence=CADENCE, module=bad_module(bad), non_finite=NonFinite("skip", 2))
    assert newest_complete(tmp_path / "checkpoints").name == "step_00000004"  # type: ignore[union-attr]
    assert summary(tmp_path)["skipped_steps"] == 2
    assert len(said(capsys.readouterr().out)) == 2
    checkpoint = newest_complete(tmp_path / "checkpoints")
    with pytest.raises(FrameworkError, match=r"number 3 of this run"):  # count of the earlier start
        train(tmp_path, cadence=CADENCE, module=bad_module(bad), non_finite=NonFinite("skip", 2), checkpoint=checkpoint)
    train(tmp_path, cadence=CADENCE, module=bad_module(bad), non_finite=NonFinite("skip", 3), checkpoint=checkpoint)
    assert (summary(tmp_path)["ended"], summary(tmp_path)["skipped_steps"]) == ("finished", 3)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Returns the rows of complete runs with the bad steps 3 and 6, by action."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    for action in (SKIP, ROLL_BACK):
        train(folder / action.action, cadence=CADENCE, module=bad_module([14, 31]), non_finite=action)
    return {name: (folder / name / "metrics.jsonl").read_bytes() for name in ("skip", "roll_back")}


@by_both
@pytest.mark.parametrize("action", [SKIP, ROLL_BACK], ids=["skip", "roll_back"])
@pytest.mark.parametrize("cut_at", [3, 5, 6])
def test_a_run_killed_around_the_bad_steps_has_the_same_rows(
    action: NonFinite, cut_at: int, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"cadence": CADENCE, "non_finite": action}
    cut = CutAt("on_train_batch_start", cut_at)
    with pytest.raises(CutError):
        train(tmp_path, module=bad_module([14, 31]), extra_callbacks=(cut,), **arguments)
    checkpoint = newest_complete(tmp_path / "checkpoints")
    train(tmp_path, module=bad_module([14, 31]), checkpoint=checkpoint, **arguments)
    assert (tmp_path / "metrics.jsonl").read_bytes() == uninterrupted[action.action]
    assert summary(tmp_path)["skipped_steps"] == (2 if action == SKIP else 3)


class LeaveAt(pl.Callback):
    """Requests a stop, as a signal does, which writes a checkpoint that an uninterrupted run does not have."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        trainer.should_stop = trainer.global_step == self.step - 1


@by_both
def test_a_run_that_stopped_between_checkpoint_and_bad_step_rolls_back_equally_far(
    uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """The run stops at step 5. The checkpoint of step 4 must still exist, and the rollback must use it."""
    arguments: dict[str, Any] = {"cadence": CADENCE, "non_finite": ROLL_BACK}
    arguments["retention"] = Retention(keep_last=1, newest_of_every=2)
    train(tmp_path, module=bad_module([14, 31]), extra_callbacks=(LeaveAt(5),), **arguments)
    names = [folder.name for folder in complete_checkpoints(tmp_path / "checkpoints")]
    assert names == ["step_00000004", "step_00000005"]
    checkpoint = newest_complete(tmp_path / "checkpoints")
    train(tmp_path, module=bad_module([14, 31]), checkpoint=checkpoint, **arguments)
    assert (tmp_path / "metrics.jsonl").read_bytes() == uninterrupted["roll_back"]


@by_both
def test_a_damaged_checkpoint_is_not_used_for_a_rollback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Damage(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch.step == 5:
                wait_for_write(trainer)
                shard = tmp_path / "checkpoints" / "step_00000004" / "__0_0.distcp"
                shard.write_bytes(shard.read_bytes()[:-1])

    module = bad_module([31])
    train(tmp_path, cadence=CADENCE, module=module, non_finite=ROLL_BACK, extra_callbacks=(Damage(),), retention=KEEP)
    lines = capsys.readouterr().out.splitlines()
    (passed_over,) = [line for line in lines if line.startswith("checkpoint: ")]
    assert "step_00000004 is damaged (" in passed_over and passed_over.endswith("step_00000002 is used instead")
    assert "are restored from step 2, and steps 3 to 6 are skipped" in said("\n".join(lines))[0]


def run_ranks(run_folder: str, strategy: str, action: NonFinite) -> list[bool]:
    after, _ = run_watched(run_folder, strategy, [31], action)
    return [same(after[6], after[5]), same(after[6], after[4]), same(after[7], after[6])]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("action", [SKIP, ROLL_BACK], ids=["skip", "roll_back"])
def test_two_ranks_continue_alike_although_only_one_has_non_finite_values(
    strategy: str, action: NonFinite, tmp_path: Path, workers: WorkerPool
) -> None:
    first, second = workers.run(run_ranks, 2, str(tmp_path / "two"), strategy, action)
    assert first == second == [action == SKIP, action == ROLL_BACK, False]
    run_watched(str(tmp_path / "one"), "single", [31], action)
    ours, theirs = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    for step, row in theirs.items():
        null = {name for name, value in row.items() if value is None}
        assert {name for name, value in ours[step].items() if value is None} == null, step
        for name in row.keys() - null:
            assert ours[step][name] == pytest.approx(row[name], rel=1e-5), (step, name)


@by_both
def test_no_non_finite_value_is_saved(tmp_path: Path) -> None:
    train(tmp_path, cadence=CADENCE, module=bad_module(range(60)), non_finite=SKIP, retention=KEEP)
    folders = complete_checkpoints(tmp_path / "checkpoints")
    assert len(folders) == 5
    for folder in folders:
        assert all(bool(torch.isfinite(value).all()) for value in read_full_state(folder).values())


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combined, "HOLDING_DEVICES", ("cpu",))


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("only_backward", [False, True])
def test_a_fault_that_is_read_in_the_next_step_names_its_own_step_and_changes_no_weight(
    only_backward: bool, tmp_path: Path
) -> None:
    """Step 3 writes no row and no checkpoint, so the host reads its decision before the update of step 4."""
    watch, module = Watch(), bad_module([14], only_backward)
    cadence = Cadence(max_steps=9, log_every_n_steps=9, checkpoint_every_n_steps=2)
    with pytest.raises(FrameworkError, match=r"Step 3: .* gradient norm is nan") as caught:
        train(tmp_path, cadence=cadence, extra_callbacks=(watch,), module=module)
    assert list(watch.after) == [0, 1, 2, 3]
    assert same(local_values(module), watch.after[2])
    ids = "12 to 17" if only_backward else "14"
    assert ids in str(caught.value)
    assert newest_complete(tmp_path / "checkpoints").name == "step_00000002"  # type: ignore[union-attr]
    assert (summary(tmp_path)["ended"], summary(tmp_path)["steps"]) == ("failed", 2)


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("action", [SKIP, ROLL_BACK], ids=["skip", "roll_back"])
def test_a_planned_stop_reads_the_decision_before_it_saves(
    action: NonFinite, uninterrupted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks agree to stop at step 3 after the callbacks that log it have run."""
    with monkeypatch.context() as stopped:
        stopped.setattr(Preemption, "_agrees_to_stop", lambda self, step: step == 3)
        train(tmp_path, cadence=CADENCE, module=bad_module([14, 31]), non_finite=action)
    checkpoint = newest_complete(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.name == "step_00000003"
    assert skipped_in_state(checkpoint) == [[3, 3]]  # type: ignore[arg-type]
    train(tmp_path, cadence=CADENCE, module=bad_module([14, 31]), checkpoint=checkpoint, non_finite=action)
    assert (tmp_path / "metrics.jsonl").read_bytes() == uninterrupted[action.action]


def test_a_rollback_in_the_next_step_computes_its_gradients_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 6 is bad and the newest checkpoint is that of step 4, so step 7 has other weights than its gradients."""
    cadence = Cadence(max_steps=9, log_every_n_steps=9, checkpoint_every_n_steps=4)
    for name, devices in {"at_once": ("cuda",), "late": ("cpu",)}.items():
        monkeypatch.setattr(combined, "HOLDING_DEVICES", devices)
        train(tmp_path / name, cadence=cadence, module=bad_module([31]), non_finite=ROLL_BACK)
    at_once, late = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("at_once", "late"))
    assert list(rows(tmp_path / "late")) == [6, 9]
    assert late == at_once
