#!/usr/bin/env bash
# Checks a training on this host, then submits it, so that a job that cannot run does not wait in the queue.
#
#   slurm/submit.sh --nodes=4 --gpus-per-node=8 --cpus-per-task=64 experiment=NAME strategy=fsdp2 [key=value ...]
#   slurm/submit.sh --array=1-20%4 --gpus-per-node=1 lines.txt experiment=NAME [key=value ...]
#
#   --dry-run            runs the checks and prints the sbatch command
#   --launch, --no-preflight, --preflight, --max-requeues, --save-seconds   go to slurm/train.sbatch, see its --help
#   --NAME=VALUE         any other option goes to sbatch
#
# The check is `framework.train check=N` for the N processes of the job: keys, files, labels, sizes and the run folder. It
# needs no GPU. With a file of overrides, an array of slurm/sweep.sbatch is submitted, and every line is checked.
set -euo pipefail
home=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
# shellcheck source=launch/lib/settings.sh
source "$home/launch/lib/settings.sh"

nodes=1 gpus="" tasks="" dry_run=no for_sbatch=() for_script=()
while [[ $# -gt 0 && $1 == -* ]]; do
    case $1 in
        -h | --help) show_help "${BASH_SOURCE[0]}" ;;
        --dry-run) dry_run=yes ;;
        --no-preflight) for_script+=("$1") ;;
        --launch | --preflight | --max-requeues | --save-seconds) for_script+=("$1" "$(value_of "$@")"); shift ;;
        *=* | --requeue | --no-requeue | --exclusive | --wait | --parsable | --hold) for_sbatch+=("$1") ;;
        *) fail "the option $1 has no value; write it as --NAME=VALUE (see $0 --help)" ;;
    esac
    case $1 in
        --nodes=*) nodes=${1#*=} ;;
        --gpus-per-node=*) gpus=${1##*[=:]} ;;
        --ntasks-per-node=*) tasks=${1#*=} ;;
    esac
    shift
done
[[ $# -gt 0 ]] || fail "nothing to train is given; add for example experiment=pretrain_demo (see $0 --help)"
[[ $nodes =~ ^[0-9]+$ ]] || fail "--nodes is $nodes. It must be one number here"
processes=$((nodes * ${gpus:-${tasks:-1}}))
python=$(python_path)

script=train.sbatch file=() lines=("")
if [[ $1 != *=* ]]; then
    script=sweep.sbatch file=("$1")
    [[ -r $1 ]] || fail "$1 is neither an override (KEY=VALUE) nor a readable file"
    mapfile -t lines < <(grep -vE '^[[:space:]]*(#|$)' "$1")
    [[ ${#lines[@]} -gt 0 ]] || fail "$1 contains no line of overrides"
    shift
fi

for line in "${lines[@]}"; do
    read -ra overrides <<<"$line"
    [[ ${#file[@]} == 0 ]] || echo "check: $line"
    "$python" -m framework.train "$@" "${overrides[@]}" "check=$processes" ||
        fail "nothing was submitted${line:+; the line of ${file[0]} that cannot run is: $line}"
done

submission=(sbatch "${for_sbatch[@]}" "$home/slurm/$script" "${file[@]}" "${for_script[@]}" "$@")
if [[ $dry_run == yes ]]; then
    printf '%q ' "${submission[@]}"
    echo
else
    "${submission[@]}"
fi
