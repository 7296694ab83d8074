#!/usr/bin/env bash
# Entry point of the image: docker run IMAGE COMMAND [ARGUMENT ...]
#
#   train ...        launch/torchrun.sh ...: one process for each GPU, or core
#   multi_node ...   launch/multi_node.sh ...: this container as one of several hosts
#   prepare, evaluate, predict, export, report, status, preflight ...   python -m framework.COMMAND ...
#   anything else    runs as it stands there
#
# Runs are in /cloze/runs, prepared data in /cloze/data_cache; mount both, with --user of their owner. SIGTERM (docker stop)
# lets a training save and leave with 0; give it time: docker stop --time 300.
set -euo pipefail
# In the image launch/ is a link into the installed package.
home=$(dirname "$(readlink -f "$(dirname "${BASH_SOURCE[0]}")/../launch")")
source "$home/launch/lib/settings.sh"
source "$home/launch/lib/agent.sh"

# A user of the host has no entry in the image, but libraries need a home and a name for their caches.
[[ -w ${HOME:-/} ]] || export HOME=/tmp
export USER=${USER:-$(id --user)}

command=${1:---help}
[[ $# -eq 0 ]] || shift
case $command in
    -h | --help) show_help "${BASH_SOURCE[0]}" ;;
    train) exec "$home/launch/torchrun.sh" "$@" ;;
    multi_node) exec "$home/launch/multi_node.sh" "$@" ;;
    prepare | evaluate | predict | export | report | status | preflight) set -- "$PYTHON" -m "framework.$command" "$@" ;;
    *) set -- "$command" "$@" ;;
esac
# The first process of a container gets no signal that it has not asked for: the command is its child.
run_agent "$@"
