"""The matrix of faults and strategies.

`python -m tests.support.faults [--all] [--kills N] [--strategies A,B] [--faults A,B]` runs it. Without --all a sample
is taken that holds each fault once and each strategy about as often as another. Prints a table for
tests/faults/README.md, and exits with 1 if anything did not survive.
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
    """Each fault with one strategy, drawn so that strategies come up about equally often."""
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


def whole_run(store: Path, folder: Path, strategy: str, *overrides: str) -> bytes:
    """The rows of a run that nothing happens to."""
    folder.mkdir(parents=True)
    trial = Trial(store, folder, strategy, random.Random(0), b"")
    trial.finish(*overrides)
    return trial.metrics


def run_cell(fault: str, strategy: str, store: Path, folder: Path, whole: bytes, seed: int) -> str:
    """Runs one fault under one strategy; returns what survived."""
    place = folder / f"{fault}_{strategy}"
    place.mkdir(parents=True)
    return FAULTS[fault](Trial(store, place, strategy, random.Random(f"{seed} {fault} {strategy}"), whole))


def soak(strategy: str, num_kills: int, store: Path, folder: Path, seed: int) -> str:
    """Kills one run many times; returns what survived."""
    steps = f"trainer.max_steps={6 * num_kills + 20}"
    whole = whole_run(store, folder / f"unkilled_{strategy}", strategy, steps)
    place = folder / f"killed_{strategy}"
    place.mkdir()
    trial = Trial(store, place, strategy, random.Random(f"{seed} {strategy}"), whole)
    torn = kill_many_times(trial, num_kills, steps)
    return f"same bits after {num_kills} kills, {torn} of them in the middle of a save"


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.faults", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every fault under every strategy")
    parser.add_argument("--kills", type=int, default=0, help="kill one run so often, under each strategy")
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
        wholes: dict[str, bytes] = {}
        print("| fault | strategy | what survived | s |\n|---|---|---|---|", flush=True)
        for fault, strategy in cells if not options.kills else []:
            reason = impossible(fault, strategy)
            began = time.monotonic()
            if reason is None:
                if strategy not in wholes:
                    wholes[strategy] = whole_run(store, folder / f"whole_{strategy}", strategy)
                try:
                    reason = run_cell(fault, strategy, store, folder, wholes[strategy], options.seed)
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
