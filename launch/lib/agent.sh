# Sourced by the launchers: runs torchrun's agent so that a stop signal lets the run save, leave and end with 0.
# shellcheck shell=bash

# What torchrun still handles; the other stop signals are kept from it, and go to its workers.
# shellcheck disable=SC2034  # read by the scripts that source this
SIGNALS=SIGTERM,SIGQUIT

# Whether a stop signal has come, and the workers that were told of it.
stop_asked=no
told=" "

# Runs an agent and returns its exit code. SIGTERM, SIGINT, SIGUSR1 and SIGHUP (the terminal is gone) go past it to its
# workers as SIGTERM: these agree at the end of a step, save, and leave with 0, and so does the agent. Signalled itself,
# it would kill them after 30 s, and fail. A second signal ends the agent in that way.
run_agent() {
    local agent="" code=0
    trap 'ask_to_stop "$agent"' TERM INT HUP USR1
    (
        trap '' INT HUP USR1
        exec "$@"
    ) &
    agent=$!
    wait "$agent" || code=$?
    if [[ $stop_asked == yes ]]; then
        # The signal has interrupted `wait`.
        while kill -0 "$agent" 2>/dev/null; do
            tell_workers "$agent"
            sleep 0.5
        done
        code=0
        wait "$agent" || code=$?
    fi
    trap - TERM INT HUP USR1
    return "$code"
}

ask_to_stop() {
    if [[ $stop_asked == yes && -n $1 ]]; then
        kill -TERM "$1" 2>/dev/null || true
    fi
    stop_asked=yes
}

# Tells each worker once. Those too young to understand end of it, and those that the agent starts in their place are told.
tell_workers() {
    local workers pid
    workers=$(workers_of "$1")
    if [[ -z $workers && $told == " " ]]; then
        kill -TERM "$1" 2>/dev/null || true # nobody trains yet, and there is nothing to save
    fi
    for pid in $workers; do
        if [[ $told != *" $pid "* ]]; then
            told+="$pid "
            kill -TERM "$pid" 2>/dev/null || true
        fi
    done
}

# The children of an agent that have a rank; where there is no /proc, all its children.
workers_of() {
    local pid
    for pid in $(cat "/proc/$1/task/$1/children" 2>/dev/null || pgrep -P "$1"); do
        # Errors are redirected first, so that a process that has just ended causes no message.
        if [[ ! -d /proc/self ]] || tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -q '^RANK='; then
            echo "$pid"
        fi
    done
}
