#!/usr/bin/env bash
# Trains on several hosts that share the run folder (a shared disk). Call the same command on each host:
#
#   launch/multi_node.sh --nodes 2 --head 10.0.0.5 --id NAME experiment=NAME [key=value ...]
#
# or call it once, on a machine that reaches all hosts over ssh without a password. Cloze and the current folder must have
# the same paths on all hosts:
#
#   launch/multi_node.sh --hosts FILE --id NAME experiment=NAME [key=value ...]
#
#   --nodes N|MIN:MAX  number of hosts; with MIN:MAX the training continues if hosts are lost and accepts hosts that join
#   --head HOST[:PORT] host to which the others connect (port 29400); the training ends with this host
#   --hosts FILE       file with one host per line, the head first; empty lines and comments (#) are skipped
#   --id NAME          name of this training; the run id is torchrun-NAME unless run.id= is given
#   --processes N      processes on each host (one per usable GPU, or per usable core without GPUs)
#   --restarts N       restarts of all processes, after failures or when hosts join or leave (10)
#   --left-code N      exit code of a run that was stopped and has saved, for schedulers that restart it (0)
#   --dry-run          prints the command and its settings instead of running it
#
# With --hosts, all hosts are checked first. If one is not reachable or has other versions, code or GPUs than the first,
# an error names it and nothing is started. CLOZE_SSH="ssh -F FILE" replaces the ssh command. The run notices a cut link
# within trainer.timeout_seconds; with MIN:MAX the host behind it joins again when the link is restored. After SIGTERM,
# SIGUSR1 or Ctrl-C the run saves and exits. An error of configuration or data is not retried; the last line states it.
# Settings and their reasons: launch/lib/settings.sh.
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
        *) fail "The option $1 is unknown. See $0 --help." ;;
    esac
    shift
done
[[ $# -gt 0 ]] || fail "No override is given. A training needs an experiment. Add for example experiment=pretrain_demo (see $0 --help)."
[[ -n $id ]] || fail "--id is missing. A training needs a name, the same on every host. Add for example --id mine."
[[ $id =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "--id is '$id'. It may contain letters, digits, dots, underscores and hyphens, and begins with a letter or digit."
[[ -z $processes || $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes is $processes. It must be an integer of at least 1."
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts is $restarts. It must be an integer of at least 0."
[[ $left_code =~ ^[0-9]+$ && $left_code -le 255 ]] || fail "--left-code is $left_code. It must be an integer from 0 to 255."
[[ -z $hosts || -z $head ]] || fail "Both --hosts and --head are given. The first host of the file is the head. Remove --head."
[[ -n $hosts || -n $head ]] || fail "--head is missing. All hosts connect to it. Give it, or list all hosts with --hosts FILE."
if [[ -n $hosts ]]; then
    [[ -r $hosts ]] || fail "--hosts is $hosts, which is not readable. Give a file with one host per line."
    mapfile -t names < <(sed 's/#.*//' "$hosts" | awk 'NF {print $1}')
    [[ ${#names[@]} -gt 0 ]] || fail "--hosts is $hosts, which lists no host. Write one host per line."
    nodes=${nodes:-${#names[@]}}
    head=${names[0]##*@}
fi
[[ $nodes =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || fail "--nodes is '$nodes'. It must be a number or MIN:MAX, such as 2 or 1:4."
[[ ${nodes%:*} -le ${nodes#*:} ]] || fail "--nodes is '$nodes'. The first number must not be larger than the second."
[[ $head == *:* ]] || head=$head:29400
[[ ${head##*:} =~ ^[1-9][0-9]*$ ]] || fail "--head is '$head'. It must be HOST or HOST:PORT."

# Runs torchrun's agent of this host, which connects to the head.
run_here() {
    local python address interface own is_host=0 guest=() agent code start
    python=$(python_path)
    processes=${processes:-$(count_processes "$python")}
    [[ $dry_run == yes ]] || wait_for_name "${head%:*}"
    address=$(address_of "${head%:*}")
    interface=$(interface_to "$address")
    [[ -n $interface ]] || fail "The host $(uname -n) has no route to the head ${head%:*} ($address). Check \`ip route\`."
    own=$(ip -4 -o address show dev "$interface" | awk 'NR == 1 {sub("/.*", "", $4); print $4}')
    if is_here "$address"; then
        is_host=1
        own=$address
    fi
    export_settings "$python" "$processes" "$interface"
    # Only the head hosts the rendezvous, so that hosts that lose their link to it cannot continue as a second run.
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
        # A host that lost the head may join the running training again. In all other cases stop; 2 is a configuration error.
        if [[ $code == 0 || $code == 2 || $is_host == 1 || $nodes != *:* || $stop_requested == yes || $start -ge $restarts ]]; then
            return "$code"
        fi
        echo "$(uname -n): The agent ended with $code. It joins again if the training at ${head%:*} continues" >&2
    done
}

# Succeeds if the run was stopped before its end, according to its summary.
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

# Waits until the name of the head has an address. Pods of Kubernetes get their addresses when they start.
wait_for_name() {
    local waited
    for ((waited = 0; waited < JOIN_SECONDS; waited += 2)); do
        [[ -z $(getent ahostsv4 "$1") ]] || return 0
        [[ $waited -gt 0 ]] || echo "$(uname -n): The head $1 has no address. Retrying for $JOIN_SECONDS s" >&2
        sleep 2
    done
}

# Waits until the head listens. At the first start a head that refuses has not started yet; later the training has ended.
wait_for_head() {
    local address=$1 port=$2 start=$3 answer last_answer="" waited
    for ((waited = 0; waited < JOIN_SECONDS; waited += 2)); do
        if answer=$(LC_ALL=C timeout 5 bash -c ": </dev/tcp/$address/$port" 2>&1); then
            return 0
        fi
        answer=$(sed -n '1s/.*: //p' <<<"$answer")
        if [[ $start -gt 0 && $answer == "Connection refused" ]]; then
            return 1
        fi
        if [[ ${answer:-no answer} != "$last_answer" ]]; then
            last_answer=${answer:-no answer}
            echo "$(uname -n): The head ${head%:*} ($address, port $port) is not reachable: $last_answer. Retrying for $JOIN_SECONDS s" >&2
        fi
        sleep 2
    done
    echo "error: $(uname -n): The head ${head%:*} ($address, port $port) was not reachable within $JOIN_SECONDS s:" \
        "$last_answer. Start multi_node.sh on it, and open the port." >&2
    return 1
}

# The braces make bash read the whole block at once: the file may change while a command runs.
{
    if [[ -n $hosts ]]; then run_everywhere "$@"; else run_here "$@"; fi
    exit
}
