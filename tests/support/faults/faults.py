"""The faults. Each function breaks a run, resumes it, and returns a summary; AssertionError: it did not survive."""

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
    """Draws a row after the second checkpoint and before the end."""
    return trial.draw.randint(7, STEPS - 3)


def _rank(trial: Trial) -> int:
    return trial.draw.randrange(trial.num_ranks)


def kill_all(trial: Trial) -> str:
    """Kills all ranks with SIGKILL after a random row."""
    trial.kill_after_row(_row(trial))
    trial.finish()
    return trial.check_same_bits()


def kill_one_rank(trial: Trial) -> str:
    """Kills one rank with SIGKILL. The other ranks must end by themselves."""
    victim = _rank(trial)
    ranks = trial.kill_after_row(_row(trial), victim)
    codes = [process.exitcode for process in ranks.processes]
    assert codes[victim] == -signal.SIGKILL and all(code not in (0, None) for code in codes), codes
    others = [code for rank, code in enumerate(codes) if rank != victim]
    assert -signal.SIGKILL not in others, f"a survivor hung: {codes}\n{ranks.read_output()}"
    trial.finish()
    return trial.check_same_bits()


def kill_in_a_save(trial: Trial) -> str:
    """Kills all ranks with SIGKILL while a checkpoint is being written."""
    kill_while_saving(trial, 3 * trial.draw.randint(2, 6))
    trial.finish()
    return trial.check_same_bits()


def kill_while_saving(trial: Trial, step: int) -> bool:
    """Kills all ranks while the checkpoint of a step is being written. Returns False if it was already complete."""
    checkpoints = trial.run / "checkpoints"
    ranks = trial.start()
    assert ranks.wait_until((checkpoints / f"step_{step:08d}.tmp").exists, WAIT_SECONDS), ranks.read_output()
    time.sleep(trial.draw.random() * 0.02)
    ranks.send(signal.SIGKILL)
    ranks.wait(WAIT_SECONDS)
    return not (checkpoints / f"step_{step:08d}" / COMPLETE).exists()


def leave_by_signal(trial: Trial) -> str:
    """Sends SIGTERM, SIGUSR1 or SIGINT to one rank. The run must save, exit with 0 and record `preempted`."""
    number = trial.draw.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
    longer = "trainer.checkpoint_every_n_steps=12"
    victim = _rank(trial)
    ranks = trial.start(longer)
    assert ranks.wait_until(lambda: len(rows(trial.run)) >= 5, WAIT_SECONDS), ranks.read_output()
    ranks.send(number, victim)
    codes = ranks.wait(WAIT_SECONDS)
    assert not any(codes), f"exit codes {codes}:\n{ranks.read_output()}"
    ended = summary(trial.run)
    # Such a short run may reach its end before the ranks agree.
    if ended["ended"] != "finished":
        assert ended["ended"] == "preempted" and number.name in str(ended["why"]), ended
        assert len(rows(trial.run)) == ended["steps"]
    trial.finish(longer)
    return f"{number.name}: {trial.check_same_bits()}"


def time_limit(trial: Trial) -> str:
    """Sets a max_time that expires at once. Each start must train one step and save."""
    for _ in range(2):
        ranks = trial.start("trainer.max_time=00:00:01")
        assert not any(ranks.wait(WAIT_SECONDS)), ranks.read_output()
        assert summary(trial.run)["ended"] == "preempted"
    assert summary(trial.run)["steps"] == 2
    trial.finish()
    return trial.check_same_bits()


def hang(trial: Trial) -> str:
    """Stops a rank, or lets a single process sleep. The watchdog must report the rank within the timeout."""
    victim, limit = _rank(trial), "trainer.timeout_seconds=8"
    if trial.num_ranks == 1:
        ranks = trial.start(limit, prepare=breakage.Sleep(victim, 7))
    else:
        ranks = trial.start(limit)
        assert ranks.wait_until(lambda: len(rows(trial.run)) >= 7, WAIT_SECONDS), ranks.read_output()
        ranks.send(signal.SIGSTOP, victim)
    others = [process for rank, process in enumerate(ranks.processes) if rank != victim or trial.num_ranks == 1]
    began = time.monotonic()
    while any(process.is_alive() for process in others):
        assert time.monotonic() - began < 90, f"no rank reported the hang:\n{ranks.read_output()}"
        time.sleep(0.05)
    ranks.send(signal.SIGKILL)
    ranks.wait(WAIT_SECONDS)
    assert f"rank {victim}" in ranks.read_output() and "no progress" in ranks.read_output(), ranks.read_output()
    trial.finish()
    return trial.check_same_bits()


def corrupt_shard(trial: Trial) -> str:
    """Flips a byte in a shard of the newest checkpoint. Checksums must detect it, and the one before is used."""
    trial.kill_after_row(_row(trial))
    newest = complete_checkpoints(trial.run / "checkpoints")[-1]
    shard = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(bytes(content))
    output = trial.finish("run.verify=checksums")
    assert shard.name in output, output
    return trial.check_same_bits()


def short_shard(trial: Trial) -> str:
    """Truncates a shard of the newest checkpoint. The size check must detect it, and the one before is used."""
    trial.kill_after_row(_row(trial))
    newest = complete_checkpoints(trial.run / "checkpoints")[-1]
    shard = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(shard, shard.stat().st_size // 2)
    output = trial.finish()
    assert shard.name in output, output
    return trial.check_same_bits()


def poisoned_index(trial: Trial) -> str:
    """Puts a command into the pickled index of the newest checkpoint. It must not run; the one before is used."""
    trial.kill_after_row(_row(trial))
    newest = complete_checkpoints(trial.run / "checkpoints")[-1]
    witness = trial.folder / "witness"
    index = newest / ".metadata"
    size = index.stat().st_size
    poison = pickle.dumps(breakage.Poison(f"touch {witness}"))
    index.write_bytes(poison + b"\0" * (size - len(poison)))
    output = trial.finish()
    assert not witness.exists(), "the command was run"
    assert ".metadata" in output, output
    return trial.check_same_bits()


def torn_row(trial: Trial) -> str:
    """Appends half a row, as a power cut does. No row of the resumed run may be missing, repeated or incomplete."""
    trial.kill_after_row(_row(trial))
    with (trial.run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 99, "train/lo')
    trial.finish()
    return trial.check_same_bits()


def stop_at_nan(trial: Trial) -> str:
    """Makes a gradient of one rank NaN. The run must stop before the update, and resume without the fault."""
    ranks = trial.start(prepare=breakage.NanGradient(_rank(trial), _row(trial)))
    codes = ranks.wait(WAIT_SECONDS)
    assert all(code not in (0, None, -signal.SIGKILL) for code in codes), f"{codes}\n{ranks.read_output()}"
    assert "finite" in ranks.read_output(), ranks.read_output()
    trial.finish()
    return trial.check_same_bits()


def skip_nan(trial: Trial) -> str:
    """Makes a gradient NaN while such steps are skipped. A killed and an undisturbed run must have the same rows."""
    return _go_on_after_nan(trial, "skip")


def roll_back_nan(trial: Trial) -> str:
    """Makes a gradient NaN while runs are rolled back. A killed and an undisturbed run must have the same rows."""
    return _go_on_after_nan(trial, "roll_back")


def _go_on_after_nan(trial: Trial, action: str) -> str:
    bad = trial.draw.randint(7, STEPS - 6)
    setting, fault = f"trainer.on_non_finite={action}", breakage.NanGradient(_rank(trial), bad)
    alone = Trial(trial.store, trial.folder / "alone", trial.strategy, trial.draw, b"")
    alone.folder.mkdir()
    alone.finish(setting, prepare=fault)
    assert alone.metrics != trial.expected and summary(alone.run)["skipped_steps"]
    trial.expected = alone.metrics
    trial.kill_after_row(bad + trial.draw.randint(-1, 4), None, setting, prepare=fault)
    trial.finish(setting, prepare=fault)
    return trial.check_same_bits()


def full_disk(trial: Trial) -> str:
    """Fills the disk so that no checkpoint fits, then frees it again."""
    with _small_disk(trial.run, "24m"):
        ranks = trial.start("trainer.keep_last=1", "trainer.keep_best=1")
        assert ranks.wait_until(lambda: len(rows(trial.run)) >= 7, WAIT_SECONDS), ranks.read_output()
        ballast = trial.run / "ballast"
        _fill(ballast, leave_bytes=100_000)
        codes = ranks.wait(WAIT_SECONDS)
        assert trial.metrics == trial.expected[: len(trial.metrics)], "rows were harmed"
        output = ranks.read_output()
        assert "disk refused" in output or "No space left" in output, f"{codes}\n{output}"
        ballast.unlink()
        trial.finish("trainer.keep_last=1", "trainer.keep_best=1")
        outcome = trial.check_same_bits()
        return f"{outcome} ({'ended with an error' if any(codes) else 'went on'})"


def read_only(trial: Trial) -> str:
    """Makes the run folder read-only before the run resumes. It must report one error and change nothing."""
    with _small_disk(trial.run, "64m"):
        trial.kill_after_row(_row(trial))
        before = trial.metrics
        subprocess.run(["mount", "-o", "remount,ro", str(trial.run)], check=True)
        ranks = trial.start()
        codes = ranks.wait(WAIT_SECONDS)
        subprocess.run(["mount", "-o", "remount,rw", str(trial.run)], check=True)
        assert all(code not in (0, None, -signal.SIGKILL) for code in codes), f"{codes}\n{ranks.read_output()}"
        assert "Read-only" in ranks.read_output() and "Traceback" not in ranks.read_output(), ranks.read_output()
        assert trial.metrics == before
        trial.finish()
        return trial.check_same_bits()


def other_world_size(trial: Trial) -> str:
    """Kills the run and resumes it with another number of ranks, and again with a third number if there is one."""
    *between, last = STRATEGIES[trial.strategy].other_sizes
    trial.kill_after_row(7)
    for num_ranks in between:
        ranks = trial.start(num_ranks=num_ranks)
        assert ranks.wait_until(lambda: len(rows(trial.run)) >= 14, WAIT_SECONDS), ranks.read_output()
        ranks.send(signal.SIGKILL)
        ranks.wait(WAIT_SECONDS)
    trial.finish(num_ranks=last)
    sizes = ", ".join(map(str, (trial.num_ranks, *between, last)))
    return f"{sizes} ranks: {trial.check_close()}"


def other_strategy(trial: Trial) -> str:
    """Kills the run and resumes it under another strategy."""
    trial.kill_after_row(_row(trial))
    strategy = trial.draw.choice([name for name in STRATEGIES if name != trial.strategy])
    trial.finish(strategy=strategy)
    return f"{strategy}: {trial.check_close()}"


@contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mounts a file system of that size on the folder (needs root)."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "cloze-test", str(folder)], check=True)
    try:
        yield
        shutil.copytree(folder, folder.with_name("kept"), ignore=shutil.ignore_patterns("ballast"))
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(path: Path, leave_bytes: int) -> None:
    """Fills a disk except for `leave_bytes`."""
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
    """Returns the reason why a fault cannot be combined with a strategy; None if it can."""
    if fault == "other_world_size" and not STRATEGIES[strategy].other_sizes:
        return "(no other size fits these processes)"
    if fault in ("full_disk", "read_only") and os.geteuid() != 0:
        return "(needs root)"
    return None
