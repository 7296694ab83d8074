# Sourced by the launchers. Runs torchrun's agent so that, after a stop signal, the run saves and exits with 0.
# shellcheck shell=bash

# Signals that torchrun handles itself. The other stop signals are withheld from it and forwarded to its workers.
# shellcheck disable=SC2034  # read by the scripts that source this
SIGNALS=SIGTERM,SIGQUIT

# "yes" after a stop signal, and the process ids of the workers that have received it.
stop_requested=no
signalled=" "

# Runs an agent and returns its exit code. SIGTERM, SIGINT, SIGUSR1 and SIGHUP are forwarded to its workers as SIGTERM: the
# workers agree on a step, save and exit with 0, and the agent exits with 0 too. An agent that gets SIGTERM itself kills
# its workers after 30 s and fails. A second signal stops the agent in this way.
run_agent() {
    local agent="" code=0
    trap 'request_stop "$agent"' TERM INT HUP USR1
    (
        trap '' INT HUP USR1
        exec "$@"
    ) &
    agent=$!
    wait "$agent" || code=$?
    if [[ $stop_requested == yes ]]; then
        # The signal has interrupted `wait`.
        while kill -0 "$agent" 2>/dev/null; do
            signal_workers "$agent"
            sleep 0.5
        done
        code=0
        wait "$agent" || code=$?
    fi
    trap - TERM INT HUP USR1
    return "$code"
}

request_stop() {
    if [[ $stop_requested == yes && -n $1 ]]; then
        kill -TERM "$1" 2>/dev/null || true
    fi
    stop_requested=yes
}

# Signals each worker once. A worker that has no handler yet dies, and the worker that replaces it is signalled as well.
signal_workers() {
    local workers pid
    workers=$(workers_of "$1")
    if [[ -z $workers && $signalled == " " ]]; then
        kill -TERM "$1" 2>/dev/null || true # no worker has started, so there is nothing to save
    fi
    for pid in $workers; do
        if [[ $signalled != *" $pid "* ]]; then
            signalled+="$pid "
            kill -TERM "$pid" 2>/dev/null || true
        fi
    done
}

# Prints the children of an agent that have a rank; without /proc, all its children.
workers_of() {
    local pid
    for pid in $(cat "/proc/$1/task/$1/children" 2>/dev/null || pgrep -P "$1"); do
        # Redirect errors first: a process that has just ended must cause no message.
        if [[ ! -d /proc/self ]] || tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -q '^RANK='; then
            echo "$pid"
        fi
    done
}
