"""Training steps on one GPU, by kind of execution: `python -m tests.benchmarks.gpu_step [--cases ...] [--models ...]`.

Needs a checkout, torch, numpy, PyYAML, Lightning and torchmetrics, but neither Hydra nor data files: encoders come from
conf/model, sequences are drawn. Each pair of case and model is a process with its own time limit, so a crash or a hang
loses nothing else. Results are appended to gpu_step.jsonl as they come; a table follows at the end. The whole call ends
within `--minutes`.

Cases: `ceilings` (rates of a matrix product and of a copy), `eager`, `transformers` (its Trainer, for minilm_sst2),
`graph` (strategy.graph), `compiled` (strategy.compile=inductor), `compiled_graph`, `attention` (kernels compared).
`operations` counts the operations of a step without a device.

`--device cpu --quick` runs every case on the CPU in tiny shapes; a row says what stands in for CUDA.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ROW = "row: "
"""Begins each line of a case's output that holds fields of its row, as JSON."""

LIMITS = {
    "ceilings": 45,
    "eager": 45,
    "transformers": 60,
    "graph": 60,
    "compiled_graph": 120,
    "attention": 90,
    "compiled": 120,
    "operations": 60,
}
"""Seconds of one process of each case."""
DEFAULT_CASES = "ceilings,eager,transformers,graph,compiled_graph,attention,compiled"
DEFAULT_MODELS = "bert_base:512,modernbert_base:1024,minilm_sst2,bert_large:512"
WITHOUT_MODEL = ("ceilings", "attention")
COLUMNS = {
    "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
    "sequences/s": lambda row: f"{row['sequences_per_second']:,.0f}",
    "MFU": lambda row: f"{row['mfu']:.1%}",
    "ms": lambda row: f"{row['step_ms']:.2f}",
    "GPU busy": lambda row: f"{row['gpu_busy']:.0%}",
    "kernels": lambda row: f"{row['kernels']:,.0f}",
    "GB": lambda row: f"{row['memory_gb']:.1f}",
    "filler": lambda row: f"{row['filler']:.1%}",
    "loss beside eager": lambda row: f"{row['loss_difference']:.1e}",
    "captures": lambda row: f"{row['captures']}",
    "recompiles": lambda row: f"{row['recompiles']}",
}


def command(case: str, model: str | None, given: argparse.Namespace) -> list[str]:
    """Returns the command that measures one case."""
    options = ["--device", given.device, "--wait", *(["--quick"] if given.quick else [])]
    return [sys.executable, "-m", "tests.benchmarks.gpu_cases", case, model or "-", *options]


class CaseProcess:
    """Process of one case. It imports its modules at once, and touches the device when `run` tells it to.

    The next case is therefore started before the present one runs, which saves the time of its imports.
    """

    def __init__(self, case: str, model: str | None, given: argparse.Namespace) -> None:
        self.row: Row = {"case": case, "model": model, "device": given.device, "state": "no time left"}
        self.log = given.out / f"{case}_{(model or 'none').replace(':', '_')}.log"
        with self.log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command(case, model, given),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def run(self, limit: float) -> Row:
        """Runs the case; returns what it reported before it ended or was stopped."""
        row, start = self.row | {"state": "ok"}, time.monotonic()
        try:
            output, _ = self.process.communicate("\n", timeout=limit)
        except subprocess.TimeoutExpired:
            row["state"] = f"stopped after {limit:.0f} s"
            output = self.stop()
        else:
            if self.process.returncode:
                last = self.log.read_text(encoding="utf-8").strip().splitlines()[-1:]
                row |= {"state": f"failed with {self.process.returncode}", "note": "".join(last)[-300:]}
        for line in output.splitlines():
            if line.startswith(ROW):
                row |= json.loads(line.removeprefix(ROW))
        return row | {"seconds": round(time.monotonic() - start, 1)}

    def stop(self) -> str:
        """Kills the process and those that it started; returns its output."""
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.communicate()[0]


def add_loss_difference(row: Row, rows: list[Row]) -> None:
    """Adds the largest relative difference between the losses of a row and of the eager row of its model."""
    eager = next((other for other in rows if other["case"] == "eager" and other["model"] == row["model"]), {})
    if row["case"] not in ("eager", "transformers") and row.get("losses") and eager.get("losses"):
        pairs = list(zip(row["losses"], eager["losses"], strict=False))
        row["loss_difference"] = max(abs(own - other) / abs(other) for own, other in pairs)


def table(rows: list[Row]) -> str:
    """Returns the rows as a Markdown table, then what has no column."""
    lines = ["| case | model | " + " | ".join(COLUMNS) + " | state |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in rows:
        cells = []
        for show in COLUMNS.values():
            try:
                cells.append(show(row))
            except (KeyError, TypeError):
                cells.append("")
        lines.append(f"| {row['case']} | {row['model'] or ''} | " + " | ".join(cells) + f" | {row['state']} |")
    for row in rows:
        label = f"{row['case']} {row['model'] or ''}".strip()
        lines += [f"{label}: {row['note']}"] if row.get("note") else []
        lines += [f"{label}: {key}: {value}" for key, value in row.get("measured", {}).items()]
    return "\n".join(lines)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=DEFAULT_CASES, help="cases, separated by commas")
    parser.add_argument("--models", default=DEFAULT_MODELS, help="MODEL[:LENGTH[:TOKENS OF A STEP]], by commas")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few steps")
    parser.add_argument("--minutes", type=float, default=8.5, help="time of the whole call")
    given = parser.parse_args(arguments)
    if unknown := set(given.cases.split(",")) - set(LIMITS):
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}. Choose from {', '.join(LIMITS)}.")
    return given


def pairs_of(given: argparse.Namespace) -> list[tuple[str, str | None]]:
    """Returns the pairs of case and model in the order in which they run."""
    pairs: list[tuple[str, str | None]] = []
    for case in given.cases.split(","):
        models = [None] if case in WITHOUT_MODEL else given.models.split(",")
        pairs += [(case, model) for model in models if case != "transformers" or str(model).startswith("minilm_sst2")]
    return pairs


def main(arguments: list[str] | None = None) -> None:
    """Runs the cases in turn and prints the table."""
    given = parsed(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    rows: list[Row] = []
    pairs = pairs_of(given)
    following = CaseProcess(*pairs[0], given)
    with (given.out / "gpu_step.jsonl").open("a", encoding="utf-8") as file:
        for index, (case, model) in enumerate(pairs):
            current, left = following, end - time.monotonic()
            if index + 1 < len(pairs):
                following = CaseProcess(*pairs[index + 1], given)
            if left < 5:
                current.stop()
                row = current.row
            else:
                row = current.run(min(LIMITS[case], left))
            add_loss_difference(row, rows)
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            rate = row.get("tokens_per_second")
            print(case, model or "", row["state"], "" if rate is None else f"{rate:,.0f} tokens/s", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
