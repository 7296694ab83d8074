#!/usr/bin/env bash
# Trains with one process for each GPU that it may use, or for each core where there is none:
#
#   launch/torchrun.sh [--processes N] [--restarts N] [--dry-run] experiment=NAME [key=value ...]
#
#   --processes N   instead
#   --restarts N    how often all processes are started again after a failure (3)
#   --dry-run       prints what would run
#
# Paths are relative to the folder in which it is called. SIGTERM, SIGUSR1 and Ctrl-C let the run save and exit with 0; the
# same line started again resumes it, as after a failure. An error of configuration or data is not retried; the last line
# states it. Settings and their reasons: launch/lib/settings.sh.
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
        *) fail "the option $1 is not known; see $0 --help" ;;
    esac
    shift
done
[[ $# -gt 0 ]] || fail "nothing to train is given; add for example experiment=pretrain_demo (see $0 --help)"
python=$(python_path)
processes=${processes:-$(count_processes "$python")}
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes is $processes, it must be a number from 1 on"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is $restarts, it must be a number from 0 on"

export_settings "$python" "$processes"
agent=("$python" "$home/launch/lib/elastic_agent.py" --standalone --nproc-per-node "$processes" --max-restarts "$restarts"
    --signals-to-handle "$SIGNALS" -m framework.train "$@")
# In braces: bash reads on in this file when a command ends, and the file may have changed by then.
{
    if [[ $dry_run == yes ]]; then print_command "${agent[@]}"; else run_agent "${agent[@]}"; fi
    exit
}
