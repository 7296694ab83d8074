#!/usr/bin/env bash
# Runs a command of Cloze in the image: docker run IMAGE COMMAND [ARGUMENT ...]
#
#   train ...        launch/torchrun.sh ...: one process per GPU, or per core without GPUs
#   multi_node ...   launch/multi_node.sh ...: this container is one of several hosts
#   prepare, plan, evaluate, predict, explain, audit, mine, export, report, status, preflight, calibrate ...   python -m framework.COMMAND ...
#   any other        runs unchanged
#
# Runs are in /cloze/runs, prepared data in /cloze/data_cache. Mount both, and pass --user with their owner. After SIGTERM
# (docker stop) a training saves and exits with 0. Give it time: docker stop --time 300.
set -euo pipefail
# In the image launch/ is a link into the installed package.
home=$(dirname "$(readlink -f "$(dirname "${BASH_SOURCE[0]}")/../launch")")
source "$home/launch/lib/settings.sh"
source "$home/launch/lib/agent.sh"

# A user of the host is unknown in the image, but libraries need a home folder and a user name for their caches.
[[ -w ${HOME:-/} ]] || export HOME=/tmp
export USER=${USER:-$(id --user)}

command=${1:---help}
[[ $# -eq 0 ]] || shift
case $command in
    -h | --help) show_help "${BASH_SOURCE[0]}" ;;
    train) exec "$home/launch/torchrun.sh" "$@" ;;
    multi_node) exec "$home/launch/multi_node.sh" "$@" ;;
    prepare | plan | evaluate | predict | explain | audit | mine | export | report | status | preflight | calibrate) set -- "$PYTHON" -m "framework.$command" "$@" ;;
    *) set -- "$command" "$@" ;;
esac
# The first process of a container receives only signals for which it has a handler, so the command runs as its child.
run_agent "$@"
