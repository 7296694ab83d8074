"""Writes the batch script of one job of a sweep on SLURM."""

import shlex
from collections.abc import Sequence
from pathlib import Path

FUNCTIONS = Path(__file__).with_name("slurm_job.sh")
"""Shell functions that all batch scripts source, including slurm/train.sbatch. Every node must see this file."""

_SCRIPT = """#!/usr/bin/env bash
# Written by framework.train --multirun hydra/launcher=slurm; each start of the sweep overwrites it.
set -uo pipefail
run={run}
source {functions}
{before}
check_time_limit {save_seconds} "hydra.launcher.time, hydra.launcher.save_seconds"
begin_job "$run"
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{threads}}} TORCH_ELASTIC_SHUTDOWN_TIMEOUT={save_seconds}
code=0
run_step {torchrun} \\
  {training} || code=$?
end_job "$run" "$code" {max_requeues}
"""


def batch_script(
    run: Path,
    python: str,
    training: Sequence[str],
    nodes: int,
    processes: int,
    threads: int,
    save_seconds: int,
    max_requeues: int,
    before: Sequence[str],
) -> str:
    """Returns the script. It runs torchrun on every node; near the time limit the run saves and the job is requeued.

    Args:
        run: Absolute path of the run folder.
        python: Path of the interpreter.
        training: Arguments of the interpreter, up to the last override of the run.
        nodes: Number of nodes.
        processes: Number of processes on each node.
        threads: Number of threads of each process.
        save_seconds: Seconds that the ranks have to save and exit.
        max_requeues: Number of requeues after which the job fails.
        before: Shell lines that run first.
    """
    rendezvous = ["--standalone"]
    if nodes > 1:
        rendezvous = [
            "--rdzv-backend=c10d",
            '--rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"',
            '--rdzv-endpoint="$(meeting_address):$(meeting_port)"',
        ]
    torchrun = [shlex.quote(python), "-m", "torch.distributed.run", '--signals-to-handle="$STEP_SIGNALS"']
    return _SCRIPT.format(
        run=shlex.quote(str(run)),
        functions=shlex.quote(str(FUNCTIONS)),
        before="\n".join(before),
        threads=threads,
        save_seconds=save_seconds,
        torchrun=" ".join([*torchrun, f"--nnodes={nodes}", f"--nproc-per-node={processes}", *rendezvous]),
        training=shlex.join(training),
        max_requeues=max_requeues,
    )
