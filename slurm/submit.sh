#!/usr/bin/env bash
# Checks the config of a training on this host, then submits the job. A faulty config fails here and not after the queue.
#
#   slurm/submit.sh --nodes=4 --gpus-per-node=8 --cpus-per-task=64 experiment=NAME strategy=fsdp2 [key=value ...]
#   slurm/submit.sh --array=1-20%4 --gpus-per-node=1 lines.txt experiment=NAME [key=value ...]
#
#   --dry-run            runs the checks and prints the sbatch command instead of submitting
#   --save-seconds N     the job gets its signal to save N seconds before its time limit (120); a shorter limit is rejected
#   --launch, --no-preflight, --preflight, --max-requeues   options of slurm/train.sbatch, see its --help
#   --NAME=VALUE         any other option is passed to sbatch
#
# The check is `framework.train check=N` for the N processes of the job. It checks keys, files, labels, sizes and the run
# folder, and needs no GPU. With a file of overrides, the script checks every line and submits slurm/sweep.sbatch.
set -euo pipefail
home=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
# shellcheck source=launch/lib/settings.sh
source "$home/launch/lib/settings.sh"

nodes=1 gpus="" tasks="" limit=${SBATCH_TIMELIMIT:-} save_seconds="" signal="" dry_run=no for_sbatch=() for_script=()
while [[ $# -gt 0 && $1 == -* ]]; do
    case $1 in
        -h | --help) show_help "${BASH_SOURCE[0]}" ;;
        --dry-run) dry_run=yes ;;
        --no-preflight) for_script+=("$1") ;;
        --save-seconds) save_seconds=$(value_of "$@"); shift ;;
        --launch | --preflight | --max-requeues) for_script+=("$1" "$(value_of "$@")"); shift ;;
        *=* | --requeue | --no-requeue | --exclusive | --wait | --parsable | --hold) for_sbatch+=("$1") ;;
        *) fail "The option $1 has no value. Options of sbatch must be written as --NAME=VALUE. See $0 --help." ;;
    esac
    case $1 in
        --nodes=*) nodes=${1#*=} ;;
        --gpus-per-node=*) gpus=${1##*[=:]} ;;
        --ntasks-per-node=*) tasks=${1#*=} ;;
        --time=*) limit=${1#*=} ;;
        --signal=*@*) signal=${1##*@} ;;
    esac
    shift
done
[[ $# -gt 0 ]] || fail "No override is given. A training needs an experiment. Add for example experiment=pretrain_demo (see $0 --help)."
[[ $nodes =~ ^[0-9]+$ ]] || fail "--nodes is $nodes. It must be one number. Give for example --nodes=2."
processes=$((nodes * ${gpus:-${tasks:-1}}))
python=$(python_path)

# SLURM and the script of the job must mean the same moment.
save_seconds=${save_seconds:-${signal:-120}}
[[ $save_seconds =~ ^[0-9]+$ ]] || fail "--save-seconds is $save_seconds. It must be a number of at least 0"
if [[ $save_seconds != 120 ]]; then
    [[ -n $signal ]] || for_sbatch+=("--signal=B:USR1@$save_seconds")
    for_script+=(--save-seconds "$save_seconds")
fi
[[ -z $limit ]] || "$python" -m framework.sweeps.slurm_time "$limit" "$save_seconds"

script=train.sbatch file=() lines=("")
if [[ $1 != *=* ]]; then
    script=sweep.sbatch file=("$1")
    [[ -r $1 ]] || fail "$1 is neither an override (KEY=VALUE) nor a readable file. Correct the path or the override."
    mapfile -t lines < <(grep -vE '^[[:space:]]*(#|$)' "$1")
    [[ ${#lines[@]} -gt 0 ]] || fail "$1 contains no line of overrides. Write the overrides of one training per line."
    shift
fi

for line in "${lines[@]}"; do
    read -ra overrides <<<"$line"
    [[ ${#file[@]} == 0 ]] || echo "check: $line"
    "$python" -m framework.train "$@" "${overrides[@]}" "check=$processes" ||
        fail "The check failed${line:+ for this line of ${file[0]}: $line}. Nothing was submitted. Correct it and submit again."
done

submission=(sbatch "${for_sbatch[@]}" "$home/slurm/$script" "${file[@]}" "${for_script[@]}" "$@")
if [[ $dry_run == yes ]]; then
    printf '%q ' "${submission[@]}"
    echo
else
    "${submission[@]}"
fi
