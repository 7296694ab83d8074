"""Tests of a sample of the matrix of faults and strategies, and of ten kills.

`python -m tests.support.faults --all` runs the whole matrix.
"""

import random
from pathlib import Path

import pytest

from tests.support.faults.__main__ import run_cell, sample, soak, undisturbed_run
from tests.support.faults.faults import FAULTS
from tests.support.faults.trial import STRATEGIES, Trial, largest_difference
from tests.support.training.tiny_run import make_store

SEED = 1


class UndisturbedRuns:
    """A token store, and the metrics.jsonl of an undisturbed run for each strategy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = make_store(folder / "text")
        self._rows: dict[str, bytes] = {}

    def __getitem__(self, strategy: str) -> bytes:
        if strategy not in self._rows:
            self._rows[strategy] = undisturbed_run(self.store, self.folder / f"whole_{strategy}", strategy)
        return self._rows[strategy]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> UndisturbedRuns:
    return UndisturbedRuns(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(("fault", "strategy"), sample(SEED))
def test_a_run_survives(undisturbed: UndisturbedRuns, fault: str, strategy: str) -> None:
    run_cell(fault, strategy, undisturbed.store, undisturbed.folder, undisturbed[strategy], SEED)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ten_kills_change_no_bit(undisturbed: UndisturbedRuns, strategy: str) -> None:
    soak(strategy, 10, undisturbed.store, undisturbed.folder, SEED)


# The fault other_world_size of the sample resumes fsdp2 with four ranks and one.
@pytest.mark.parametrize(
    ("strategy", "other", "num_ranks"), [("ddp", "ddp", 1), ("fsdp2", "ddp", 2), ("hsdp", "fsdp2", 2)]
)
def test_a_killed_run_goes_on_elsewhere(
    undisturbed: UndisturbedRuns, tmp_path: Path, strategy: str, other: str, num_ranks: int
) -> None:
    trial = Trial(undisturbed.store, tmp_path, strategy, random.Random(SEED), undisturbed[strategy])
    trial.kill_after_row(11)
    trial.finish(strategy=other, num_ranks=num_ranks)
    trial.check_close()


def test_the_sample_holds_each_fault_and_each_strategy() -> None:
    cells = sample(SEED)
    assert {fault for fault, _ in cells} == set(FAULTS)
    assert {strategy for _, strategy in cells} == set(STRATEGIES)
    assert ("other_world_size", "fsdp2") in cells


def test_other_rows_are_noticed(tmp_path: Path) -> None:
    trial = Trial(tmp_path, tmp_path, "single", random.Random(0), b'{"step": 1, "train/loss": 2.0}\n')
    trial.run.mkdir()
    (trial.run / "metrics.jsonl").write_bytes(b'{"step": 1, "train/loss": 2.0001}\n')
    with pytest.raises(AssertionError, match=r"1 rows for 1.*2\.0001"):
        trial.check_same_bits()
    with pytest.raises(AssertionError, match="rows differ by 5e-05"):
        trial.check_close()
    assert largest_difference([{"step": 1, "a": 4.0}], [{"step": 1, "a": 4.4}]) == pytest.approx(0.1 / 1.1)
