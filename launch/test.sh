#!/usr/bin/env bash
# Runs all checks and tests: launch/test.sh [pytest arguments]. The script sets up .venv first.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launch/setup.sh demo test

step() {
    echo "test: $*"
    "$@"
}

# Tests download and send nothing.
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
# Waiting threads must not spin, because the processes of a test share the cores.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
step .venv/bin/ruff format --check framework tests launch
step .venv/bin/ruff check framework tests launch
step .venv/bin/mypy
step .venv/bin/shellcheck -x launch/*.sh launch/lib/*.sh docker/*.sh slurm/*.sh slurm/*.sbatch framework/sweeps/slurm_job.sh .ci/run
# The tests of a file stay in one worker, so that what a file builds once is built once. The order is that of
# tests/conftest.py. Three workers keep two cores busy, because many tests wait: for SLURM, timeouts, servers.
step .venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
echo "test: all passed"
