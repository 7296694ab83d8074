"""Tests of slurm/train.sbatch on a real SLURM of two nodes: after any interruption, rows are bitwise equal.

CLOZE_SLOW_TESTS=1 runs ten interruptions, otherwise three.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.needs import machine, slow
from tests.support.processes.ranks import Ranks
from tests.support.processes.slurm_cluster import Cluster, job_state, slurm, wait_until, why_not
from tests.support.training.tiny_run import arguments, make_store, rows, summary

ROOT = Path(__file__).resolve().parents[2]
STEPS = 16
WAIT_SECONDS = 240
LENGTH = (f"trainer.max_steps={STEPS}", "trainer.checkpoint_every_n_steps=4")
SLEEPY = "task._target_=tests.support.tasks.faulty_task.SleepyTask"

pytestmark = machine(why_not)


@dataclass
class Site:
    """Data that all jobs share.

    Attributes:
        store: Token store.
        runs: Folder of the run folders.
        outputs: Folder of the jobs' outputs.
        rows: Content of metrics.jsonl of an undisturbed run of two ranks without SLURM.
    """

    cluster: Cluster
    store: Path
    runs: Path
    outputs: Path
    rows: bytes

    def submit(
        self,
        *options: str,
        training: tuple[str, ...] = (),
        sleep: str = "0.3 0 1",
        nodes: int = 2,
        array: Path | None = None,
    ) -> "Trial":
        given = [each for each in self.arguments("ddp", SLEEPY) if not each.startswith("run.id=")]
        sbatch_options = [f"--nodes={nodes}", "--gpus-per-node=1", "--output=" + str(self.outputs / "%j.out")]
        script = [str(ROOT / "slurm" / "train.sbatch"), *options]
        if array is not None:
            sbatch_options += ["--array=1-2", "--output=" + str(self.outputs / "%A_%a.out")]
            script = [str(ROOT / "slurm" / "sweep.sbatch"), str(array), *options]
        variables = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "CLOZE_TEST_SLEEP": sleep}
        command = ["sbatch", "--parsable", f"--chdir={ROOT}", *sbatch_options, *script, *given, *training]
        return Trial(self, submit(command, **variables))

    def arguments(self, strategy: str, *overrides: str) -> list[str]:
        return arguments(self.store, self.runs, "whole", strategy, *LENGTH, *overrides)


@dataclass
class Trial:
    """A job that trains.

    Attributes:
        task: Index in a job array; empty for a single job.
    """

    site: Site
    job: int
    task: str = ""

    @property
    def name(self) -> str:
        return f"{self.job}_{self.task}" if self.task else str(self.job)

    @property
    def run(self) -> Path:
        return self.site.runs / f"slurm-{self.job}"

    def status_and_output(self) -> str:
        output = self.site.outputs / f"{self.name}.out"
        return f"{job_state(self.name)}\n{output.read_text() if output.exists() else ''}"

    def wait_for_rows(self, count: int) -> None:
        """Waits until the run has `count` rows; 0 waits until its first SLURM step is about to begin."""
        begun = self.run / "logs" / "slurm_start"
        wait_until(
            lambda: (begun.exists() and len(rows(self.run)) >= count) or job_state(self.name) == "FAILED",
            WAIT_SECONDS,
            self.status_and_output,
        )
        assert job_state(self.name) == "RUNNING", self.status_and_output()

    def wait_for_restart(self) -> None:
        """Waits until SLURM has requeued the job."""
        wait_until(lambda: self.job_field("Restarts") == "1", WAIT_SECONDS, self.status_and_output)

    def wait_for_end(self) -> str:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        wait_until(lambda: job_state(self.name) in ended, WAIT_SECONDS, self.status_and_output)
        return job_state(self.name)

    def job_field(self, name: str) -> str:
        text = subprocess.check_output(["scontrol", "show", "job", self.name], text=True)
        return re.search(rf"{name}=(\S+)", text)[1]

    def check_resumed(self) -> None:
        """Checks that the job resumed and that its rows equal those of an undisturbed run."""
        assert self.wait_for_end() == "COMPLETED", self.status_and_output()
        starts = json.loads((self.run / "provenance.json").read_text())["starts"]
        assert [each["world_size"] for each in starts][-1] == 2
        assert (self.run / "metrics.jsonl").read_bytes() == self.site.rows
        assert (summary(self.run)["ended"], summary(self.run)["steps"]) == ("finished", STEPS)
        assert self.job_field("Restarts") == "1"


def submit(command: list[str], **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_JOB")} | variables
    return int(subprocess.check_output(command, env=environment, text=True).partition(";")[0])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("slurm")
    store = make_store(folder / "text")
    (folder / "outputs").mkdir()
    line = arguments(store, folder / "runs", "whole", "ddp", *LENGTH)
    ranks = Ranks(line, 2, folder / "whole.txt")
    assert ranks.wait(WAIT_SECONDS) == [0, 0], ranks.read_output()
    expected = (folder / "runs" / "whole" / "metrics.jsonl").read_bytes()
    assert len(rows(folder / "runs" / "whole")) == STEPS
    with slurm(folder / "servers", num_nodes=2) as cluster:
        yield Site(cluster, store, folder / "runs", folder / "outputs", expected)


def preempt(trial: Trial) -> None:
    """Submits a job of higher priority that needs both nodes."""
    line = ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
    submit([*line, "--wrap=sleep 1"])


def signal_early(trial: Trial) -> None:
    """Sends the signal that SLURM sends some time before the time limit."""
    subprocess.run(["scancel", "--batch", "--signal=USR1", str(trial.job)], check=True)


def requeue(trial: Trial) -> None:
    """Requeues the job as an administrator does. SLURM kills it after 5 s at most."""
    subprocess.run(["scontrol", "requeue", str(trial.job)], check=True)


def lose_node(trial: Trial) -> None:
    """Kills everything on the second node at once, waits until SLURM notices, and restarts the node."""
    trial.site.cluster.lose_node("node1")
    trial.wait_for_restart()
    trial.site.cluster.start_node("node1")


INTERRUPTIONS = [preempt, signal_early, lose_node]


@pytest.mark.parametrize("interrupt", INTERRUPTIONS, ids=lambda each: each.__name__)
def test_an_interrupted_job_goes_on(site: Site, interrupt: Callable[[Trial], None]) -> None:
    trial = site.submit("--no-preflight")
    trial.wait_for_rows(6)
    interrupt(trial)
    trial.check_resumed()


def test_a_job_that_failed_is_not_completed_and_one_that_was_cancelled_is_not_queued_again(site: Site) -> None:
    failed = site.submit("--no-preflight", training=("optimizer.lr=-1",), nodes=1)
    assert failed.wait_for_end() == "FAILED" and failed.job_field("ExitCode") == "2:0"
    assert "optimizer.lr" in failed.status_and_output()

    cancelled = site.submit("--no-preflight")
    cancelled.wait_for_rows(3)
    subprocess.run(["scancel", str(cancelled.job)], check=True)
    assert cancelled.wait_for_end() == "CANCELLED" and cancelled.job_field("Restarts") == "0"


def test_nodes_are_looked_at_first_and_an_array_trains_a_line_each(site: Site, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("# both short\n\nseed=1 trainer.max_steps=2\ntask.mask_probability=2 seed=2\n")
    looked = ("--preflight", "--timeout 100 --min-link 0.1 --min-link-share 0 --sizes 0.1")
    array = site.submit(*looked, array=lines)
    for task, state in (("1", "COMPLETED"), ("2", "FAILED")):
        each = Trial(site, array.job, task)
        assert each.wait_for_end() == state, each.status_and_output()
        assert re.search(r"0: all-reduce of 0\.1 MB: [\d.,]+ MB/s", each.status_and_output())
        assert re.search(r"0: +node0 +1 +0 .*\n0: +node1 +1 +0 ", each.status_and_output())
    assert summary(site.runs / f"slurm-{array.job}-1")["steps"] == 2

    refused = site.submit("--preflight", "--timeout 100 --min-disk 1e9")
    assert refused.wait_for_end() == "FAILED" and refused.job_field("ExitCode") == "2:0"
    assert re.search(r"0: error: preflight: node0: \d+\.\d GB free .*; node1: ", refused.status_and_output())
    assert not (refused.run / "config.yaml").exists()


@slow
@pytest.mark.parametrize(
    ("interrupt", "options", "sleep", "num_rows"),
    [
        (requeue, ("--no-preflight",), "0.3 0 1", 6),
        (preempt, ("--no-preflight",), "3 0", 5),
        (signal_early, ("--no-preflight",), "3 0", 5),
        (signal_early, ("--no-preflight", "--launch", "torchrun"), "0.3 0 1", 6),
        (preempt, ("--no-preflight", "--launch", "torchrun"), "0.3 0 1", 6),
        (lose_node, ("--no-preflight", "--launch", "torchrun"), "3 0", 5),
        (signal_early, ("--no-preflight",), "0.3 0 1", 0),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_more_interrupted_jobs_go_on(site: Site, interrupt, options, sleep, num_rows) -> None:
    trial = site.submit(*options, sleep=sleep)
    trial.wait_for_rows(num_rows)
    interrupt(trial)
    trial.check_resumed()
