#!/usr/bin/env bash
# What multi_node.sh --hosts runs on each host: an agent that outlives the ssh connection that started it.
#
#   launch/lib/attach.sh start ID ARGUMENTS   starts launch/multi_node.sh ARGUMENTS, shows its output until it ends
#   launch/lib/attach.sh again ID             shows the output from here on, after the connection was lost
#   launch/lib/attach.sh stop ID              lets the run save and leave
#
# Ends with the agent's exit code. Its output stays in the folder cloze-agent-USER-ID of TMPDIR (/tmp).
set -euo pipefail
home=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
source "$home/launch/lib/settings.sh"

[[ ${1:-} != -h && ${1:-} != --help ]] || show_help "${BASH_SOURCE[0]}"
[[ $# -ge 2 ]] || fail "an action and an id are needed; see $0 --help"
action=$1 id=$2
shift 2
# Named after the host as well: the folder may lie on a disk that hosts share.
state=${TMPDIR:-/tmp}/cloze-agent-$(id -u)-$id-$(uname -n)

# Any user can create a folder of that name in /tmp, so only a private folder is used for files and process ids.
check_state() {
    [[ -n $(find "$state" -maxdepth 0 -type d -user "$(id -u)" ! -perm -020 ! -perm -002) ]] ||
        fail "$state is not a folder that belongs to you and that only you can change. Remove it, or set TMPDIR to another folder"
}

is_running() {
    [[ -f $state/pid ]] && kill -0 "$(cat "$state/pid")" 2>/dev/null
}

if [[ $action == start ]]; then mkdir -m 700 "$state" 2>/dev/null || true; fi
[[ ! -e $state && ! -L $state ]] || check_state

# Shows the log from a line on, until the agent has ended.
show() {
    tail -n "$1" -f --pid="$(cat "$state/pid")" "$state/log"
    for _ in {1..50}; do
        [[ ! -f $state/code ]] || exit "$(cat "$state/code")"
        sleep 0.1
    done
    fail "the agent of --id $id has ended without an exit code"
}

case $action in
    start)
        ! is_running || fail "an agent of --id $id runs here already (process $(cat "$state/pid")); stop it, or choose another id"
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
        [[ -f $state/pid ]] || fail "no agent of --id $id was started here"
        show 0
        ;;
    stop) ! is_running || kill -TERM "$(cat "$state/pid")" ;;
    *) fail "the action $action is not known; see $0 --help" ;;
esac
