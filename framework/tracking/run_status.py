"""Where a run stands, told from its folder alone: nothing is asked of its processes, and nothing is written."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from framework.checkpoint.layout import newest_complete, step_of
from framework.checkpoint.storage import Location
from framework.distributed.processes.beats import Beat, Beats, is_gone, last_line
from framework.distributed.processes.failure_report import FAILURE_FILE
from framework.tracking.summary_file import read_summary

RUNNING, SILENT, LOST, UNKNOWN = "running", "silent", "lost", "not started"

_SILENT_SECONDS = 20.0
"""Ranks beat every 2 seconds or faster; a shared file system may show it late."""
_TAIL_BYTES = 65_536
_ROWS_FOR_SPEED = 10


@dataclass(frozen=True)
class RunStatus:
    """One run as its folder shows it.

    Attributes:
        name: The folder's name.
        state: "running"; how summary.json says that it ended; "silent": no rank gives signs of life, and whether its
            processes are gone cannot be seen from this host; "lost": they are gone without a word; "not started".
        why: Of a run that did not finish.
        num_ranks: Of the newest start.
        step: The newest one that is known.
        max_steps: Its last one; None: not known yet.
        loss: Of training, newest row.
        tokens_per_second: Newest row.
        seconds_left: To the last step, at the speed of the newest rows.
        validation: Newest value of each validation metric.
        checkpoint_step: Of the newest complete checkpoint.
        checkpoint_age: Seconds since it was completed.
        last_lines: Newest line in the log of each rank, where the run ended badly.
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
    checkpoint_step: int | None = None
    checkpoint_age: float | None = None
    last_lines: Mapping[int, str] = field(default_factory=dict)

    @property
    def ended_badly(self) -> bool:
        """Somebody should look at it."""
        return self.state in ("failed", SILENT, LOST)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / "config.yaml").is_file()


def read_status(folder: Path, checkpoints: Location) -> RunStatus:
    """Reads one run folder; files that are not there yet, or half written, count as not there.

    Args:
        folder: Of the run.
        checkpoints: The folder of its checkpoints, there or elsewhere.
    """
    live = max((folder / "logs" / "live").glob("*"), default=None)
    beats = Beats(live, 0.0).read() if live is not None else {}
    state, why = _state(folder, live, beats)
    metrics, perf = tail_rows(folder / "metrics.jsonl"), tail_rows(folder / "perf.jsonl")
    newest: dict[str, Any] = {}
    for row in (*metrics, *perf):
        newest |= {key: value for key, value in row.items() if value is not None}
    steps = [row["step"] for row in (*metrics[-1:], *perf[-1:])]
    if state == RUNNING:
        # A beat names the step that is being trained.
        steps += [beat.step - 1 for beat in beats.values() if beat.step]
    step = max(steps, default=None)
    max_steps = _max_steps(folder)
    checkpoint_step, checkpoint_age = _checkpoint(checkpoints)
    return RunStatus(
        name=folder.name,
        state=state,
        why=why,
        num_ranks=len(beats),
        step=step,
        max_steps=max_steps,
        loss=newest.get("train/loss"),
        tokens_per_second=newest.get("perf/tokens_per_second"),
        seconds_left=_seconds_left(perf, step, max_steps) if state == RUNNING else None,
        validation={key: value for key, value in newest.items() if key.startswith("val/")},
        checkpoint_step=checkpoint_step,
        checkpoint_age=checkpoint_age,
        last_lines={rank: last_line(beat.log) for rank, beat in sorted(beats.items())},
    )


def _state(folder: Path, live: Path | None, beats: Mapping[int, Beat]) -> tuple[str, str | None]:
    """State, and why."""
    if live is not None and any(_is_alive(live, beat) for beat in beats.values()):
        return RUNNING, None
    began = _start_of(live)
    summary_file = folder / "summary.json"
    try:
        summary = read_summary(folder)
        if summary is not None and summary_file.stat().st_mtime >= began:
            return str(summary["ended"]), summary["why"]
    except (OSError, ValueError):
        pass  # it is being replaced
    failure = _failure(folder)
    if failure is not None and failure["seconds"] >= began:
        return "failed", f"{failure['kind']} (rank {failure['rank']}, step {failure['step']}): {failure['message']}"
    if not beats:
        return UNKNOWN, None
    if all(is_gone(beat) for beat in beats.values()):
        return LOST, "all processes are gone without a word: killed, or their host was"
    return SILENT, f"no sign of life for more than {_SILENT_SECONDS:.0f} seconds"


def _is_alive(live: Path, beat: Beat) -> bool:
    if is_gone(beat):
        return False
    try:
        age = time.time() - (live / f"beat_{beat.rank:05d}.json").stat().st_mtime
    except OSError:
        return False
    return age < _SILENT_SECONDS


def _start_of(live: Path | None) -> float:
    """When the newest start was, in seconds since the epoch; its folder's name says it."""
    if live is None:
        return 0.0
    stamp = live.name.partition("-")[0]
    return datetime.strptime(stamp, "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()


def _failure(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "logs" / FAILURE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _max_steps(folder: Path) -> int | None:
    """From the line with which rank 0 begins to train: steps may follow from epochs."""
    try:
        with (folder / "logs" / "rank_00000.log").open(encoding="utf-8", errors="replace") as log:
            lines = [line for line in log if " after step " in line]
    except OSError:
        return None
    last = lines[-1].rpartition(" of ")[2].strip() if lines else ""
    return int(last) if last.isdecimal() else None


def _checkpoint(checkpoints: Location) -> tuple[int | None, float | None]:
    """Step of the newest complete one, and its age where the disk tells it."""
    newest = newest_complete(checkpoints)
    if newest is None:
        return None, None
    return step_of(newest), time.time() - newest.stat().st_mtime if isinstance(newest, Path) else None


def _seconds_left(perf: list[dict[str, Any]], step: int | None, max_steps: int | None) -> float | None:
    """At the speed between the newest rows of one start: its clock begins anew with each."""
    rows = perf[-_ROWS_FOR_SPEED:]
    while len(rows) > 1 and rows[0]["perf/wall_seconds"] >= rows[-1]["perf/wall_seconds"]:
        rows = rows[1:]
    if step is None or max_steps is None or not rows:
        return None
    if len(rows) == 1:
        seconds, steps = rows[0]["perf/wall_seconds"], rows[0]["step"]
    else:
        seconds = rows[-1]["perf/wall_seconds"] - rows[0]["perf/wall_seconds"]
        steps = rows[-1]["step"] - rows[0]["step"]
    return (max_steps - step) * seconds / steps if steps else None


def tail_rows(path: Path) -> list[dict[str, Any]]:
    """The newest rows of a file of JSON lines, without a first and a last line that are not whole."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    whole = lines[:-1] if size <= _TAIL_BYTES else lines[1:-1]
    return [json.loads(line) for line in whole]
