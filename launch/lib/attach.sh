#!/usr/bin/env bash
# Runs an agent that outlives the ssh connection that started it. multi_node.sh --hosts calls this script on each host.
#
#   launch/lib/attach.sh start ID ARGUMENTS   starts launch/multi_node.sh ARGUMENTS and prints its output until it ends
#   launch/lib/attach.sh again ID             prints the new output, after the connection was lost
#   launch/lib/attach.sh stop ID              signals the run to save and exit
#
# The exit code is that of the agent. The output is kept in the folder cloze-agent-USER-ID-HOST in TMPDIR (/tmp).
set -euo pipefail
home=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
source "$home/launch/lib/settings.sh"

[[ ${1:-} != -h && ${1:-} != --help ]] || show_help "${BASH_SOURCE[0]}"
[[ $# -ge 2 ]] || fail "The arguments are '$*'. An action and an id are required. See $0 --help."
action=$1 id=$2
shift 2
# The name contains the host, because several hosts may share TMPDIR.
state=${TMPDIR:-/tmp}/cloze-agent-$(id -u)-$id-$(uname -n)

# Any user can create a folder of that name in /tmp, so the script only uses a private folder.
check_state() {
    [[ -n $(find "$state" -maxdepth 0 -type d -user "$(id -u)" ! -perm -020 ! -perm -002) ]] ||
        fail "$state is not a folder that you own and that only you can write to. Remove it, or set TMPDIR to another folder."
}

is_running() {
    [[ -f $state/pid ]] && kill -0 "$(cat "$state/pid")" 2>/dev/null
}

if [[ $action == start ]]; then mkdir -m 700 "$state" 2>/dev/null || true; fi
[[ ! -e $state && ! -L $state ]] || check_state

# Prints the log from a given line, until the agent has ended.
show() {
    tail -n "$1" -f --pid="$(cat "$state/pid")" "$state/log"
    for _ in {1..50}; do
        [[ ! -f $state/code ]] || exit "$(cat "$state/code")"
        sleep 0.1
    done
    fail "The agent with --id $id ended without an exit code. See $state/log on $(uname -n)."
}

case $action in
    start)
        ! is_running || fail "An agent with --id $id already runs on $(uname -n) (process $(cat "$state/pid")). Stop it, or choose another id."
        rm -f "$state/pid" "$state/code"
        : >"$state/log"
        # shellcheck disable=SC2016  # the inner shell expands
        setsid bash -c 'state=$1 script=$2 && shift 2 && trap "" HUP && code=0
            bash "$script" "$@" & echo $! >"$state/pid"; wait $! || code=$?; echo $code >"$state/code"' \
            _ "$state" "$home/launch/multi_node.sh" "$@" </dev/null >"$state/log" 2>&1 &
        for _ in {1..50}; do
            [[ ! -f $state/pid ]] || break
            sleep 0.1
        done
        show +1
        ;;
    again)
        [[ -f $state/pid ]] || fail "No agent with --id $id was started on $(uname -n). Call $0 start $id first."
        show 0
        ;;
    stop) ! is_running || kill -TERM "$(cat "$state/pid")" ;;
    *) fail "The action is $action. It must be start, again or stop. See $0 --help." ;;
esac
