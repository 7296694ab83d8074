"""Stand-in for one job of a sweep: `python fake_training.py FOLDER` acts as FOLDER/role.json says, in 50 ms.

It writes the files that `framework.train` writes into a run folder: config.yaml, summary.json and logs/failure.json.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

FAILURE = {"time": "2026-11-29T22:00:00.000+00:00", "why": "ValueError (step 3): no room"}


def main(folder: Path) -> int:
    role = json.loads((folder / "role.json").read_text())
    with (folder / "starts").open("a") as stream:
        stream.write(json.dumps({name: os.environ.get(name) for name in role["shown"]}) + "\n")
    if role["does"] == "refuse":
        print("DataError: the file rows.csv, row 7: no label; add one.")
        print("some noise of a launcher")
        return 2
    (folder / "config.yaml").write_text(role["config"])
    if role["does"] == "wait":
        left: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: left.append(number))
        (folder / "waits").touch()
        while not left:
            time.sleep(0.01)
        summarise(folder, "preempted", "SIGTERM on rank 0", 1.0)
        return 1  # as torchrun does
    if role["does"] == "begin":
        (folder / "waits").touch()
        time.sleep(60)  # handles no signal yet
    if role["does"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if role["does"] == "fail":
        (folder / "logs" / "failure.json").write_text(json.dumps(FAILURE))
        summarise(folder, "failed", "ValueError (step 3): no room", 9.0)
        return 1
    summarise(folder, "pruned" if role["does"] == "prune" else "finished", None, role["loss"], role["metrics"])
    return 0


def summarise(folder: Path, ended: str, why: str | None, loss: float, metrics: dict[str, float] | None = None) -> None:
    summary = {
        "ended": ended,
        "why": why,
        "steps": 12,
        "max_steps": 12,
        "tokens": 4500,
        "tokens_per_second": 1500.0,
        "wall_seconds": 3.0,
        "last": {"train/loss": 7.0, "val/loss": loss, "val/mlm_loss": loss, **(metrics or {})},
        "best_metric": "val/loss",
        "best": {"step": 10, "val/loss": loss - 0.5},
    }
    (folder / "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
