"""Runs the matrix of faults and strategies.

`python -m tests.support.faults [--all] [--kills N] [--strategies A,B] [--faults A,B]`. Without --all it runs a sample
that contains each fault once and each strategy about equally often. It prints a table for tests/faults/README.md and
exits with 1 if a run did not survive.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.support.faults.faults import FAULTS, impossible
from tests.support.faults.kills import kill_many_times
from tests.support.faults.trial import STRATEGIES, Trial
from tests.support.training.tiny_run import make_store


def sample(seed: int) -> list[tuple[str, str]]:
    """Returns each fault with one strategy, drawn so that strategies occur about equally often."""
    draw = random.Random(seed)
    names: list[str] = []
    cells = []
    for fault in FAULTS:
        if not names:
            names = draw.sample(list(STRATEGIES), len(STRATEGIES))
        strategy = next((name for name in names if impossible(fault, name) is None), None)
        if strategy is not None:
            names.remove(strategy)
            cells.append((fault, strategy))
    return cells


def undisturbed_run(store: Path, folder: Path, strategy: str, *overrides: str) -> bytes:
    """Trains without a fault, and returns the content of metrics.jsonl."""
    folder.mkdir(parents=True)
    trial = Trial(store, folder, strategy, random.Random(0), b"")
    trial.finish(*overrides)
    return trial.metrics


def run_cell(fault: str, strategy: str, store: Path, folder: Path, expected: bytes, seed: int) -> str:
    """Runs one fault under one strategy, and returns a summary of the outcome."""
    trial_folder = folder / f"{fault}_{strategy}"
    trial_folder.mkdir(parents=True)
    return FAULTS[fault](Trial(store, trial_folder, strategy, random.Random(f"{seed} {fault} {strategy}"), expected))


def soak(strategy: str, num_kills: int, store: Path, folder: Path, seed: int) -> str:
    """Kills one run many times, and returns a summary of the outcome."""
    steps = f"trainer.max_steps={5 * num_kills + 14}"
    expected = undisturbed_run(store, folder / f"unkilled_{strategy}", strategy, steps)
    trial_folder = folder / f"killed_{strategy}"
    trial_folder.mkdir()
    trial = Trial(store, trial_folder, strategy, random.Random(f"{seed} {strategy}"), expected)
    torn = kill_many_times(trial, num_kills, steps)
    return f"same bits after {num_kills} kills, {torn} of them in the middle of a save"


def main() -> int:
    """Runs the selected faults or kills, prints the table, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.faults", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every fault under every strategy")
    parser.add_argument("--kills", type=int, default=0, help="number of kills of one run under each strategy")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    strategies, faults = options.strategies.split(","), options.faults.split(",")
    cells = [(fault, strategy) for fault in faults for strategy in strategies] if options.all else sample(options.seed)

    failures = 0
    with tempfile.TemporaryDirectory(prefix="cloze-faults-") as name:
        folder = Path(name)
        store = make_store(folder / "text")
        expected_by_strategy: dict[str, bytes] = {}
        print("| fault | strategy | what survived | s |\n|---|---|---|---|", flush=True)
        for fault, strategy in cells if not options.kills else []:
            reason = impossible(fault, strategy)
            began = time.monotonic()
            if reason is None:
                if strategy not in expected_by_strategy:
                    expected_by_strategy[strategy] = undisturbed_run(store, folder / f"whole_{strategy}", strategy)
                try:
                    reason = run_cell(fault, strategy, store, folder, expected_by_strategy[strategy], options.seed)
                except AssertionError as error:
                    failures += 1
                    reason = f"FAILED: {error}"
            print(f"| {fault} | {strategy} | {reason} | {time.monotonic() - began:.0f} |", flush=True)
        for strategy in strategies if options.kills else []:
            began = time.monotonic()
            try:
                outcome = soak(strategy, options.kills, store, folder, options.seed)
            except AssertionError as error:
                failures += 1
                outcome = f"FAILED: {error}"
            print(f"| {options.kills} kills | {strategy} | {outcome} | {time.monotonic() - began:.0f} |", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
