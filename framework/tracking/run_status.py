"""Reads the status of a run from its folder alone, without contacting its processes or writing anything.

This module does not import torch. Any file may be missing, partly written or damaged.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from framework.checkpoint.layout import CHECKPOINTS, checkpoints_folder, newest_complete, step_of
from framework.checkpoint.storage import Location
from framework.distributed.processes.beats import Beat, Beats, is_gone, last_line
from framework.distributed.processes.failure_file import read_failure
from framework.errors import CheckpointError, FrameworkError
from framework.files import parse_json
from framework.tracking.privacy_file import privacy_spent
from framework.tracking.run_files import (
    BEST_METRIC,
    CONFIG_FILE,
    JOB_FILE,
    SLURM_EXIT_FILE,
    SWEEP_FILE,
    TASK_FILE,
    read_object,
    read_saved_config,
)
from framework.tracking.summary_file import SUMMARY_FILE, read_summary

RUNNING, SILENT, LOST, UNKNOWN = "running", "silent", "lost", "not started"
UNREADABLE = "unreadable"
"""State of a run whose folder cannot be read."""

DAMAGED = "damaged"
"""State of a run that ended but whose summary.json cannot be read."""

_ENDED = ("finished", "pruned", "preempted", "stopped", "failed")

_SILENT_SECONDS = 20.0
"""Age from which a beat counts as missing. Ranks beat every 2 seconds or faster; shared file systems add delay."""
_TAIL_BYTES = 65_536
_ROWS_FOR_SPEED = 10
_LARGEST = 1e300
_MAX_DEPTH = 4
"""Largest number of folders between the folder of the runs and a run, such as those of sweeps."""
_RUN_FILES = (
    *(CONFIG_FILE, SUMMARY_FILE, "metrics.jsonl", CHECKPOINTS),
    *("logs/live", "logs/output.log", "logs/slurm_start", f"logs/{JOB_FILE}"),
)
"""A folder that contains any of these is a run, even if others are missing."""


@dataclass(frozen=True)
class RunStatus:
    """Status of one run, read from its folder.

    Attributes:
        name: Name to show.
        state: "running"; the end that summary.json records; "silent": no rank beats, and this host cannot check
            whether the processes still exist; "lost": all processes are gone and recorded no end; "not started";
            "damaged"; "unreadable".
        why: Reason for which the run did not finish.
        num_ranks: Number of ranks of the newest start.
        step: Newest known step.
        max_steps: Last step of the run; None: not known yet.
        loss: Training loss of the newest row.
        tokens_per_second: Throughput of the newest row.
        seconds_left: Seconds to the last step, at the speed of the newest rows.
        validation: Newest value of each validation metric.
        best_metric: Metric that ranks the checkpoints of the run; None: unknown, as in runs of earlier versions.
        checkpoint_step: Step of the newest complete checkpoint.
        checkpoint_age: Seconds since this checkpoint was completed.
        last_lines: Newest line in the log of each rank.
        epsilon: Epsilon of the completed steps of a private run; None: the run is not private.
    """

    name: str
    state: str
    why: str | None = None
    num_ranks: int = 0
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    best_metric: str | None = None
    checkpoint_step: int | None = None
    checkpoint_age: float | None = None
    last_lines: Mapping[int, str] = field(default_factory=dict)
    epsilon: float | None = None

    @property
    def ended_badly(self) -> bool:
        """True if the run needs attention."""
        return self.state in ("failed", SILENT, LOST, DAMAGED, UNREADABLE)


def is_run(folder: Path) -> bool:
    """Returns True for the folder of a run, even if the run waits for SLURM, and for unreadable folders."""
    try:
        return folder.is_dir() and any((folder / name).exists() for name in _RUN_FILES)
    except OSError:
        return True


def iterate_runs(folder: Path, depth: int = _MAX_DEPTH) -> Iterator[Path]:
    """Yields the run folders in a folder and in its sub-folders, by name."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return
    for entry in entries:
        if is_run(entry):
            yield entry
        elif depth > 0:
            yield from iterate_runs(entry, depth - 1)


def named_run(name: str, runs: Path) -> Path | None:
    """Returns the run folder with a name; None if there is none.

    Args:
        name: Run id in `runs` or in one of its sub-folders, such as a sweep; or the path of a run folder.
        runs: Folder of the runs.

    Raises:
        CheckpointError: Several runs have the id.
    """
    for folder in (runs / name, Path(name)):
        if is_run(folder):
            return folder
    if "/" in name or Path(name).exists() or (runs / name).exists():
        return None
    matches = [folder for folder in iterate_runs(runs) if folder.name == name]
    if len(matches) > 1:
        raise CheckpointError(
            f"{name} is the id of {len(matches)} runs: {', '.join(map(str, matches))}. An id must name one run. Give "
            "the folder of the run instead."
        )
    return matches[0] if matches else None


def read_status(folder: Path, name: str | None = None) -> RunStatus:
    """Reads one run folder. Files that are missing, half written or damaged count as missing.

    Args:
        folder: Folder of the run.
        name: Name to show; None: the name of the folder.
    """
    try:
        return _read_status(folder, name or folder.name)
    except (FrameworkError, OSError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        return RunStatus(name or folder.name, UNREADABLE, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _read_status(folder: Path, name: str) -> RunStatus:
    starts = [path for path in (folder / "logs" / "live").glob("*") if _start_of(path) is not None]
    live = max(starts, default=None)
    beats = Beats(live, 0.0).read() if live is not None else {}
    state, why = _state(folder, live, beats)
    metrics, perf = tail_rows(folder / "metrics.jsonl"), tail_rows(folder / "perf.jsonl")
    newest: dict[str, float] = {}
    for row in (*metrics, *perf):
        newest |= row
    steps = [int(row["step"]) for row in (*metrics[-1:], *perf[-1:])]
    if state == RUNNING:
        # A beat has the step that is being trained.
        steps += [beat.step - 1 for beat in beats.values() if beat.step]
    step = max(steps, default=None)
    max_steps = _max_steps(folder)
    checkpoint_step, checkpoint_age = _checkpoint(_checkpoints_of(folder))
    return RunStatus(
        name=name,
        state=state,
        why=why,
        num_ranks=len(beats),
        step=step,
        max_steps=max_steps,
        loss=newest.get("train/loss"),
        tokens_per_second=newest.get("perf/tokens_per_second"),
        seconds_left=_seconds_left(perf, step, max_steps) if state == RUNNING else None,
        validation={key: value for key, value in newest.items() if key.startswith("val/")},
        best_metric=_best_metric(folder),
        checkpoint_step=checkpoint_step,
        checkpoint_age=checkpoint_age,
        last_lines={rank: last_line(beat.log) for rank, beat in sorted(beats.items())},
        epsilon=(privacy_spent(folder, step or 0) or {}).get("spent_epsilon"),
    )


def _state(folder: Path, live: Path | None, beats: Mapping[int, Beat]) -> tuple[str, str | None]:
    """Returns the state and its reason."""
    if live is not None and any(_is_alive(live, beat) for beat in beats.values()):
        return RUNNING, None
    began = (_start_of(live) if live is not None else None) or 0.0
    summary, file = read_summary(folder), folder / SUMMARY_FILE
    has_ended = file.is_file() and file.stat().st_mtime >= began
    if has_ended and summary is not None and summary["ended"] in _ENDED:
        return summary["ended"], summary["why"]
    failure = read_failure(folder / "logs")
    if failure is not None and failure.seconds >= began:
        return "failed", failure.why
    if has_ended:
        return DAMAGED, f"{SUMMARY_FILE} cannot be read; a new start of the run rebuilds it from metrics.jsonl"
    if not beats:
        why = _failure_before_start(folder)
        return (UNKNOWN, None) if why is None else ("failed", why)
    if all(is_gone(beat) for beat in beats.values()):
        return LOST, "all processes are gone and recorded no end; they were killed, or their host failed"
    return SILENT, f"no beat of any rank for more than {_SILENT_SECONDS:.0f} seconds"


def _failure_before_start(folder: Path) -> str | None:
    """Returns the reason of a failure before the run wrote files, from its sweep or SLURM job; None if not failed."""
    jobs = read_object(folder.parent / SWEEP_FILE).get("jobs")
    for job in jobs if isinstance(jobs, list) else []:
        if isinstance(job, dict) and job.get("run") == folder.name and job.get("state") == "failed":
            return str(job.get("why"))
    try:
        code = (folder / "logs" / SLURM_EXIT_FILE).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return f"its SLURM job ended with exit code {code} before the training began; see the output of the job"


def _best_metric(folder: Path) -> str | None:
    """Reads the metric that ranks checkpoints from task.json, or from summary.json for runs of earlier versions."""
    records = (read_object(folder / name).get(BEST_METRIC) for name in (TASK_FILE, SUMMARY_FILE))
    return next((metric for metric in records if isinstance(metric, str)), None)


def _is_alive(live: Path, beat: Beat) -> bool:
    if is_gone(beat):
        return False
    try:
        age = time.time() - (live / f"beat_{beat.rank:05d}.json").stat().st_mtime
    except OSError:
        return False
    return age < _SILENT_SECONDS


def _start_of(live: Path) -> float | None:
    """Returns the time of a start in seconds since the epoch, from its folder name; None for other folders."""
    stamp = live.name.partition("-")[0]
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _max_steps(folder: Path) -> int | None:
    """Reads the last step from the log line of rank 0 at the start of training, because epochs may determine it."""
    try:
        with (folder / "logs" / "rank_00000.log").open(encoding="utf-8", errors="replace") as log:
            lines = [line for line in log if " after step " in line]
    except OSError:
        return None
    last = lines[-1].rpartition(" of ")[2].strip() if lines else ""
    return int(last) if last.isascii() and last.isdecimal() else None


def _checkpoints_of(folder: Path) -> Location:
    run = read_saved_config(folder).get("run")
    checkpoints = run.get("checkpoints") if isinstance(run, dict) else None
    return checkpoints_folder(folder, checkpoints if isinstance(checkpoints, str) else None)


def _checkpoint(checkpoints: Location) -> tuple[int | None, float | None]:
    """Returns step and age of the newest complete checkpoint; the age may be unknown."""
    newest = newest_complete(checkpoints)
    if newest is None:
        return None, None
    return step_of(newest), time.time() - newest.stat().st_mtime if isinstance(newest, Path) else None


def _seconds_left(perf: Sequence[Mapping[str, float]], step: int | None, max_steps: int | None) -> float | None:
    """Returns the seconds to the last step at the speed of the newest rows of one start. Its clock begins at 0."""
    rows = [row for row in perf[-_ROWS_FOR_SPEED:] if "perf/wall_seconds" in row]
    while len(rows) > 1 and rows[0]["perf/wall_seconds"] >= rows[-1]["perf/wall_seconds"]:
        rows = rows[1:]
    if step is None or max_steps is None or not rows:
        return None
    first = rows[0] if len(rows) > 1 else {"perf/wall_seconds": 0.0, "step": 0}
    seconds = rows[-1]["perf/wall_seconds"] - first["perf/wall_seconds"]
    steps = rows[-1]["step"] - first["step"]
    return (max_steps - step) * seconds / steps if steps > 0 else None


def tail_rows(path: Path) -> list[dict[str, float]]:
    """Reads the finite numbers of the newest rows of a JSONL file. Invalid lines are skipped."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    complete = lines[:-1] if size <= _TAIL_BYTES else lines[1:-1]
    rows = (_numbers(line) for line in complete)
    return [row for row in rows if "step" in row]


def _numbers(line: bytes) -> dict[str, float]:
    try:
        row = parse_json(line)
    except ValueError:
        return {}
    return {key: value for key, value in row.items() if _is_number(value)} if isinstance(row, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
