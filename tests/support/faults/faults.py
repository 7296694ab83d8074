"""The faults: each meets a run of its own, lets it go on, and says what survived; what did not is an AssertionError."""

import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from framework.checkpoint.layout import COMPLETE, complete_checkpoints
from tests.support.faults import breakage
from tests.support.faults.trial import STRATEGIES, WAIT_SECONDS, Trial
from tests.support.training.tiny_run import STEPS, rows, summary


def _row(trial: Trial) -> int:
    """A row after the second checkpoint and before the end."""
    return trial.draw.randint(7, STEPS - 3)


def _rank(trial: Trial) -> int:
    return trial.draw.randrange(trial.num_ranks)


def kill_all(trial: Trial) -> str:
    """Kill -9 of all ranks after a random row."""
    trial.kill_after_row(_row(trial))
    trial.finish()
    return trial.check_same_bits()


def kill_one_rank(trial: Trial) -> str:
    """Kill -9 of one rank: the others leave by themselves."""
    victim = _rank(trial)
    ranks = trial.kill_after_row(_row(trial), victim)
    codes = [process.exitcode for process in ranks.processes]
    assert codes[victim] == -signal.SIGKILL and all(code not in (0, None) for code in codes), codes
    others = [code for rank, code in enumerate(codes) if rank != victim]
    assert -signal.SIGKILL not in others, f"a survivor hung: {codes}\n{ranks.told()}"
    trial.finish()
    return trial.check_same_bits()


def kill_in_a_save(trial: Trial) -> str:
    """Kill -9 of all ranks while a checkpoint is being written."""
    kill_while_saving(trial, 3 * trial.draw.randint(2, 6))
    trial.finish()
    return trial.check_same_bits()


def kill_while_saving(trial: Trial, step: int) -> bool:
    """Kills all ranks while the checkpoint of a step is being written; False if it was complete already."""
    checkpoints = trial.run / "checkpoints"
    ranks = trial.start()
    assert ranks.wait_until((checkpoints / f"step_{step:08d}.tmp").exists, WAIT_SECONDS), ranks.told()
    time.sleep(trial.draw.random() * 0.02)
    ranks.send(signal.SIGKILL)
    ranks.wait(WAIT_SECONDS)
    return not (checkpoints / f"step_{step:08d}" / COMPLETE).exists()


def leave_by_signal(trial: Trial) -> str:
    """SIGTERM, SIGUSR1 or SIGINT on one rank: saved, exit code 0, `preempted`."""
    number = trial.draw.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
    longer = "trainer.checkpoint_every_n_steps=12"
    victim = _rank(trial)
    ranks = trial.start(longer)
    assert ranks.wait_until(lambda: len(rows(trial.run)) >= 5, WAIT_SECONDS), ranks.told()
    ranks.send(number, victim)
    codes = ranks.wait(WAIT_SECONDS)
    assert not any(codes), f"exit codes {codes}:\n{ranks.told()}"
    ended = summary(trial.run)
    # A run so short may reach its end before the ranks agree.
    if ended["ended"] != "finished":
        assert ended["ended"] == "preempted" and number.name in str(ended["why"]), ended
        assert len(rows(trial.run)) == ended["steps"]
    trial.finish(longer)
    return f"{number.name}: {trial.check_same_bits()}"


def time_limit(trial: Trial) -> str:
    """max_time that is up at once: one step more at each start, saved."""
    for _ in range(2):
        ranks = trial.start("trainer.max_time=00:00:01")
        assert not any(ranks.wait(WAIT_SECONDS)), ranks.told()
        assert summary(trial.run)["ended"] == "preempted"
    assert summary(trial.run)["steps"] == 2
    trial.finish()
    return trial.check_same_bits()


def hang(trial: Trial) -> str:
    """A rank is stopped, or a lone process sleeps: noticed within the timeout, and the rank named."""
    victim, limit = _rank(trial), "trainer.timeout_seconds=8"
    if trial.num_ranks == 1:
        ranks = trial.start(limit, prepare=breakage.Sleep(victim, 7))
    else:
        ranks = trial.start(limit)
        assert ranks.wait_until(lambda: len(rows(trial.run)) >= 7, WAIT_SECONDS), ranks.told()
        ranks.send(signal.SIGSTOP, victim)
    others = [process for rank, process in enumerate(ranks.processes) if rank != victim or trial.num_ranks == 1]
    began = time.monotonic()
    while any(process.is_alive() for process in others):
        assert time.monotonic() - began < 90, f"nobody noticed:\n{ranks.told()}"
        time.sleep(0.05)
    ranks.send(signal.SIGKILL)
    ranks.wait(WAIT_SECONDS)
    assert f"rank {victim}" in ranks.told() and "no progress" in ranks.told(), ranks.told()
    trial.finish()
    return trial.check_same_bits()


def corrupt_shard(trial: Trial) -> str:
    """A byte of the newest checkpoint's largest shard is flipped: checksums find it, the one before is used."""
    trial.kill_after_row(_row(trial))
    newest = complete_checkpoints(trial.run / "checkpoints")[-1]
    shard = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(bytes(content))
    told = trial.finish("run.verify=checksums")
    assert shard.name in told, told
    return trial.check_same_bits()


def short_shard(trial: Trial) -> str:
    """The newest checkpoint's shard lost its end: its size tells, the one before is used."""
    trial.kill_after_row(_row(trial))
    newest = complete_checkpoints(trial.run / "checkpoints")[-1]
    shard = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(shard, shard.stat().st_size // 2)
    told = trial.finish()
    assert shard.name in told, told
    return trial.check_same_bits()


def poisoned_index(trial: Trial) -> str:
    """The index of the newest checkpoint runs a command when unpickled: it does not, the one before is used."""
    trial.kill_after_row(_row(trial))
    newest = complete_checkpoints(trial.run / "checkpoints")[-1]
    witness = trial.folder / "witness"
    index = newest / ".metadata"
    size = index.stat().st_size
    poison = pickle.dumps(breakage.Poison(f"touch {witness}"))
    index.write_bytes(poison + b"\0" * (size - len(poison)))
    told = trial.finish()
    assert not witness.exists(), "the command was run"
    assert ".metadata" in told, told
    return trial.check_same_bits()


def torn_row(trial: Trial) -> str:
    """A power cut left half a row, and rows beyond the checkpoint: they are cut, none is missing, none twice."""
    trial.kill_after_row(_row(trial))
    with (trial.run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 99, "train/lo')
    trial.finish()
    return trial.check_same_bits()


def stop_at_nan(trial: Trial) -> str:
    """A gradient of one rank is NaN: the run stops before the update; without the fault it goes on."""
    ranks = trial.start(prepare=breakage.NanGradient(_rank(trial), _row(trial)))
    codes = ranks.wait(WAIT_SECONDS)
    assert all(code not in (0, None, -signal.SIGKILL) for code in codes), f"{codes}\n{ranks.told()}"
    assert "finite" in ranks.told(), ranks.told()
    trial.finish()
    return trial.check_same_bits()


def skip_nan(trial: Trial) -> str:
    """A gradient of one rank is NaN and the step skipped: a killed run and one left alone have the same rows."""
    return _go_on_after_nan(trial, "skip")


def roll_back_nan(trial: Trial) -> str:
    """A gradient of one rank is NaN and the run rolled back: a killed run and one left alone have the same rows."""
    return _go_on_after_nan(trial, "roll_back")


def _go_on_after_nan(trial: Trial, action: str) -> str:
    bad = trial.draw.randint(7, STEPS - 6)
    setting, fault = f"trainer.on_non_finite={action}", breakage.NanGradient(_rank(trial), bad)
    alone = Trial(trial.store, trial.folder / "alone", trial.strategy, trial.draw, b"")
    alone.folder.mkdir()
    alone.finish(setting, prepare=fault)
    assert alone.metrics != trial.whole and summary(alone.run)["skipped_steps"]
    trial.whole = alone.metrics
    trial.kill_after_row(bad + trial.draw.randint(-1, 4), None, setting, prepare=fault)
    trial.finish(setting, prepare=fault)
    return trial.check_same_bits()


def full_disk(trial: Trial) -> str:
    """The disk has no room for a checkpoint any more, then has again."""
    with _small_disk(trial.run, "24m"):
        ranks = trial.start("trainer.keep_last=1", "trainer.keep_best=1")
        assert ranks.wait_until(lambda: len(rows(trial.run)) >= 7, WAIT_SECONDS), ranks.told()
        ballast = trial.run / "ballast"
        _fill(ballast, leave_bytes=100_000)
        codes = ranks.wait(WAIT_SECONDS)
        assert trial.metrics == trial.whole[: len(trial.metrics)], "rows were harmed"
        told = ranks.told()
        assert "disk refused" in told or "No space left" in told, f"{codes}\n{told}"
        ballast.unlink()
        trial.finish("trainer.keep_last=1", "trainer.keep_best=1")
        outcome = trial.check_same_bits()
        return f"{outcome} ({'ended with an error' if any(codes) else 'went on'})"


def read_only(trial: Trial) -> str:
    """The run folder cannot be written when the run is to go on: one error, nothing harmed."""
    with _small_disk(trial.run, "64m"):
        trial.kill_after_row(_row(trial))
        before = trial.metrics
        subprocess.run(["mount", "-o", "remount,ro", str(trial.run)], check=True)
        ranks = trial.start()
        codes = ranks.wait(WAIT_SECONDS)
        subprocess.run(["mount", "-o", "remount,rw", str(trial.run)], check=True)
        assert all(code not in (0, None, -signal.SIGKILL) for code in codes), f"{codes}\n{ranks.told()}"
        assert "Read-only" in ranks.told() and "Traceback" not in ranks.told(), ranks.told()
        assert trial.metrics == before
        trial.finish()
        return trial.check_same_bits()


def other_world_size(trial: Trial) -> str:
    """Killed, and started again with another number of ranks; so again where there is a third number."""
    *between, last = STRATEGIES[trial.strategy].other_sizes
    trial.kill_after_row(7)
    for num_ranks in between:
        ranks = trial.start(num_ranks=num_ranks)
        assert ranks.wait_until(lambda: len(rows(trial.run)) >= 14, WAIT_SECONDS), ranks.told()
        ranks.send(signal.SIGKILL)
        ranks.wait(WAIT_SECONDS)
    trial.finish(num_ranks=last)
    sizes = ", ".join(map(str, (trial.num_ranks, *between, last)))
    return f"{sizes} ranks: {trial.check_close()}"


def other_strategy(trial: Trial) -> str:
    """Killed, and started again under another strategy."""
    trial.kill_after_row(_row(trial))
    strategy = trial.draw.choice([name for name in STRATEGIES if name != trial.strategy])
    trial.finish(strategy=strategy)
    return f"{strategy}: {trial.check_close()}"


@contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of that size in the folder's place (needs root)."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "cloze-test", str(folder)], check=True)
    try:
        yield
        shutil.copytree(folder, folder.with_name("kept"), ignore=shutil.ignore_patterns("ballast"))
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(path: Path, leave_bytes: int) -> None:
    """Fills a disk up to some bytes."""
    free = shutil.disk_usage(path.parent).free
    with suppress(OSError), path.open("wb") as file:
        file.write(b"\0" * max(0, free - leave_bytes))


FAULTS: dict[str, Callable[[Trial], str]] = {
    function.__name__: function
    for function in (
        kill_all,
        kill_one_rank,
        kill_in_a_save,
        leave_by_signal,
        time_limit,
        hang,
        corrupt_shard,
        short_shard,
        poisoned_index,
        torn_row,
        stop_at_nan,
        skip_nan,
        roll_back_nan,
        full_disk,
        read_only,
        other_world_size,
        other_strategy,
    )
}


def impossible(fault: str, strategy: str) -> str | None:
    """Why a fault cannot meet a strategy; None where it can."""
    if fault == "other_world_size" and not STRATEGIES[strategy].other_sizes:
        return "(no other size fits these processes)"
    if fault in ("full_disk", "read_only") and os.geteuid() != 0:
        return "(needs root)"
    return None
