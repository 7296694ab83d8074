#!/usr/bin/env bash
# Trains on this host, with one process per usable GPU, or per usable core without GPUs:
#
#   launch/torchrun.sh [--processes N] [--restarts N] [--dry-run] experiment=NAME [key=value ...]
#
#   --processes N   number of processes
#   --restarts N    restarts of all processes after a failure (3)
#   --dry-run       prints the command and its settings instead of running it
#
# Paths are relative to the current folder. After SIGTERM, SIGUSR1 or Ctrl-C the run saves and exits with 0. The same
# command resumes it, also after a failure. An error of configuration or data is not retried; the last line states it.
# Settings and their reasons: launch/lib/settings.sh.
set -euo pipefail
home=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
source "$home/launch/lib/settings.sh"
source "$home/launch/lib/agent.sh"

processes="" restarts=3 dry_run=no
while [[ $# -gt 0 && $1 == -* ]]; do
    case $1 in
        --processes) processes=$(value_of "$@"); shift ;;
        --restarts) restarts=$(value_of "$@"); shift ;;
        --dry-run) dry_run=yes ;;
        -h | --help) show_help "${BASH_SOURCE[0]}" ;;
        *) fail "The option $1 is unknown. See $0 --help." ;;
    esac
    shift
done
[[ $# -gt 0 ]] || fail "No override is given. A training needs an experiment. Add for example experiment=pretrain_demo (see $0 --help)."
python=$(python_path)
processes=${processes:-$(count_processes "$python")}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes is $processes. It must be an integer of at least 1."
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is $restarts. It must be an integer of at least 0."

export_settings "$python" "$processes"
agent=("$python" "$home/launch/lib/elastic_agent.py" --standalone --nproc-per-node "$processes" --max-restarts "$restarts"
    --signals-to-handle "$SIGNALS" -m framework.train "$@")
# The braces make bash read the whole block at once: the file may change while a command runs.
{
    if [[ $dry_run == yes ]]; then print_command "${agent[@]}"; else run_agent "${agent[@]}"; fi
    exit
}
