"""The batch script of one job of a sweep on SLURM."""

import shlex
from collections.abc import Sequence
from pathlib import Path

FUNCTIONS = Path(__file__).with_name("slurm_job.sh")
"""What all batch scripts share, slurm/train.sbatch too; every node sees it, as it sees the interpreter."""

_SCRIPT = """#!/usr/bin/env bash
# Made by framework.train --multirun hydra/launcher=slurm; each start of the sweep writes it anew.
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
    """Writes the script: torchrun on every node; near the time limit the run saves, leaves and is queued again.

    Args:
        run: The run folder, absolute.
        python: The interpreter.
        training: Options of the interpreter, after which the run's command line begins.
        nodes: Of the job.
        processes: On each node.
        threads: Of each process.
        save_seconds: How long the ranks may take to leave.
        max_requeues: After so many the job fails instead.
        before: Lines of shell that run first.
    """
    meeting = ["--standalone"]
    if nodes > 1:
        meeting = [
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
        torchrun=" ".join([*torchrun, f"--nnodes={nodes}", f"--nproc-per-node={processes}", *meeting]),
        training=shlex.join(training),
        max_requeues=max_requeues,
    )
