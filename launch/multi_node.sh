#!/usr/bin/env bash
# Trains on several hosts that see the same run folder (a shared disk). The same line on each of them:
#
#   launch/multi_node.sh --nodes 2 --head 10.0.0.5 --id NAME experiment=NAME [key=value ...]
#
# or from one machine that reaches all of them over ssh without a password, with Cloze and the current folder at
# the same paths on each:
#
#   launch/multi_node.sh --hosts FILE --id NAME experiment=NAME [key=value ...]
#
#   --nodes N|MIN:MAX  hosts in all; MIN:MAX goes on with fewer where some are lost, and takes in others that join
#   --head HOST[:PORT] where they meet, one of them (port 29400); the training ends with this host
#   --hosts FILE       a host a line, the first is the head; empty lines and # are skipped
#   --id NAME          of this training: the run's id too (torchrun-NAME), unless run.id= is given
#   --processes N      on each host; else one for each GPU that it may use, or for each core where there is none
#   --restarts N       how often all processes are started again, after failures or because hosts come and go (10)
#   --left-code N      exit code where the run has saved and left before its end, as schedulers that start it again want (0)
#   --dry-run          prints what would run
#
# With --hosts each host is looked at first: those that cannot be reached, or have other versions, code or GPUs than the
# first, are named and nothing is started. CLOZE_SSH="ssh -F FILE" is another ssh. A link that is cut is noticed within
# trainer.timeout_seconds; with MIN:MAX the host behind it joins again when the link is back. SIGTERM, SIGUSR1 and Ctrl-C
# let the run save and exit. An error of configuration or data is not retried; the last line states it. Settings and
# their reasons: launch/lib/settings.sh.
set -euo pipefail
home=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
source "$home/launch/lib/settings.sh"
source "$home/launch/lib/agent.sh"
source "$home/launch/lib/over_ssh.sh"

nodes="" head="" hosts="" id="" processes="" restarts=10 left_code=0 dry_run=no
while [[ $# -gt 0 && $1 == -* ]]; do
    case $1 in
        --nodes) nodes=$(value_of "$@"); shift ;;
        --head) head=$(value_of "$@"); shift ;;
        --hosts) hosts=$(value_of "$@"); shift ;;
        --id) id=$(value_of "$@"); shift ;;
        --processes) processes=$(value_of "$@"); shift ;;
        --restarts) restarts=$(value_of "$@"); shift ;;
        --left-code) left_code=$(value_of "$@"); shift ;;
        --dry-run) dry_run=yes ;;
        -h | --help) show_help "${BASH_SOURCE[0]}" ;;
        *) fail "the option $1 is not known; see $0 --help" ;;
    esac
    shift
done
[[ $# -gt 0 ]] || fail "nothing to train is given; add for example experiment=pretrain_demo (see $0 --help)"
[[ -n $id ]] || fail "--id is missing: a name of this training, the same on every host"
[[ $id =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "--id is '$id', it must be of letters, digits, dots, underscores and hyphens"
[[ -z $processes || $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes is $processes, it must be a number from 1 on"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is $restarts, it must be a number from 0 on"
[[ $left_code =~ ^[0-9]+$ && $left_code -le 255 ]] || fail "--left-code is $left_code, it must be a number from 0 to 255"
[[ -z $hosts || -z $head ]] || fail "--hosts and --head exclude each other: the first host of the file is the head"
[[ -n $hosts || -n $head ]] || fail "--head is missing: the host at which all meet; or name all of them with --hosts FILE"
if [[ -n $hosts ]]; then
    [[ -r $hosts ]] || fail "--hosts $hosts cannot be read"
    mapfile -t names < <(sed 's/#.*//' "$hosts" | awk 'NF {print $1}')
    [[ ${#names[@]} -gt 0 ]] || fail "--hosts $hosts names no host"
    nodes=${nodes:-${#names[@]}}
    head=${names[0]##*@}
fi
[[ $nodes =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || fail "--nodes is '$nodes', it must be a number or MIN:MAX, such as 2 or 1:4"
[[ ${nodes%:*} -le ${nodes#*:} ]] || fail "--nodes is '$nodes', but the first number must not be larger than the second"
[[ $head == *:* ]] || head=$head:29400
[[ ${head##*:} =~ ^[1-9][0-9]*$ ]] || fail "--head is '$head', it must be HOST or HOST:PORT"

# One host: an agent of torchrun, which meets the others at the head.
run_here() {
    local python address interface own is_host=0 guest=() agent code start
    python=$(python_path)
    processes=${processes:-$(count_processes "$python")}
    [[ $dry_run == yes ]] || wait_for_name "${head%:*}"
    address=$(address_of "${head%:*}")
    interface=$(interface_to "$address")
    [[ -n $interface ]] || fail "this host ($(uname -n)) has no way to the head ${head%:*} ($address); see \`ip route\`"
    own=$(ip -4 -o address show dev "$interface" | awk 'NR == 1 {sub("/.*", "", $4); print $4}')
    if is_here "$address"; then
        is_host=1
        own=$address
    fi
    export_settings "$python" "$processes" "$interface"
    # The head alone holds the place where all meet, so that hosts that are cut off from it cannot go on as a run of their
    # own.
    if [[ $nodes == *:* && $is_host == 0 ]]; then
        guest=(--guest)
    fi
    agent=("$python" "$home/launch/lib/elastic_agent.py" "${guest[@]}" --nnodes "$nodes" --nproc-per-node "$processes"
        --rdzv-backend c10d --rdzv-endpoint "$address:${head##*:}" --rdzv-id "$id"
        --rdzv-conf "is_host=$is_host,$RENDEZVOUS_TIMES" --local-addr "$own" --max-restarts "$restarts"
        --signals-to-handle "$SIGNALS" -m framework.train "$@")
    if [[ $dry_run == yes ]]; then
        print_command "${agent[@]}"
        return
    fi
    for ((start = 0; ; start++)); do
        if [[ $is_host == 0 ]]; then
            wait_for_head "$address" "${head##*:}" "$start" || return "${code:-2}"
        fi
        code=0
        run_agent "${agent[@]}" || code=$?
        if [[ $code == 0 ]] && has_left "$@"; then
            return "$left_code"
        fi
        # A host that lost the head may rejoin a running training. Otherwise, and after a configuration error (2), stop.
        if [[ $code == 0 || $code == 2 || $is_host == 1 || $nodes != *:* || $stop_asked == yes || $start -ge $restarts ]]; then
            return "$code"
        fi
        echo "$(uname -n): the agent ended with $code; it joins again if the training at ${head%:*} goes on" >&2
    done
}

# True where the run's summary says that it is not at its end.
has_left() {
    local folder=runs name=torchrun-$id override
    for override in "$@"; do
        case $override in
            run.dir=*) folder=${override#*=} ;;
            run.id=*) name=${override#*=} ;;
        esac
    done
    grep -q '"ended": "preempted"' "$folder/$name/summary.json" 2>/dev/null
}

# Waits until the head's name has an address: pods of Kubernetes get theirs when they start.
wait_for_name() {
    local waited
    for ((waited = 0; waited < JOIN_SECONDS; waited += 2)); do
        [[ -z $(getent ahostsv4 "$1") ]] || return 0
        [[ $waited -gt 0 ]] || echo "$(uname -n): the head $1 has no address here; looking for it for $JOIN_SECONDS s" >&2
        sleep 2
    done
}

# Waits until the head listens. A head that refuses has not begun yet; at a later start the training is over.
wait_for_head() {
    local address=$1 port=$2 start=$3 answer said="" waited
    for ((waited = 0; waited < JOIN_SECONDS; waited += 2)); do
        if answer=$(LC_ALL=C timeout 5 bash -c ": </dev/tcp/$address/$port" 2>&1); then
            return 0
        fi
        answer=$(sed -n '1s/.*: //p' <<<"$answer")
        if [[ $start -gt 0 && $answer == "Connection refused" ]]; then
            return 1
        fi
        if [[ ${answer:-no answer} != "$said" ]]; then
            said=${answer:-no answer}
            echo "$(uname -n): the head ${head%:*} ($address, port $port) cannot be reached: $said; trying for $JOIN_SECONDS s" >&2
        fi
        sleep 2
    done
    echo "error: $(uname -n): the head ${head%:*} ($address, port $port) could not be reached within $JOIN_SECONDS s: $said" >&2
    return 1
}

# In braces: bash reads on in this file when a command ends, and the file may have changed by then.
{
    if [[ -n $hosts ]]; then run_everywhere "$@"; else run_here "$@"; fi
    exit
}
