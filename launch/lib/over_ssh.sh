# Sourced by multi_node.sh. Checks all hosts of a file, starts an agent on each over ssh, and prints their output.
# shellcheck shell=bash disable=SC2154  # multi_node.sh sets: names nodes head id processes restarts left_code dry_run

# Number of attempts to restore a broken ssh connection, and seconds between them. The agent runs on without it.
FOLLOW_ATTEMPTS=120
FOLLOW_SECONDS=5

# Runs a shell line on a host. ssh closes a connection that is silent for 15 s.
over_ssh() {
    local ssh=(ssh) host=$1
    shift
    [[ -z ${CLOZE_SSH:-} ]] || read -ra ssh <<<"$CLOZE_SSH"
    "${ssh[@]}" -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 "$host" "$@"
}

# Prints a shell line that reports, in one line, the facts that must be equal on all hosts.
facts_command() {
    cat <<'FACTS'
source "$home/launch/lib/settings.sh" && printf 'Python %s; torch %s; code %s; GPUs %s; processes %s\n' \
    "$("$PYTHON" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo missing)" \
    "$("$PYTHON" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || echo missing)" \
    "$(cd "$package" && find . ../conf -name '*.py' -o -name '*.yaml' 2>/dev/null | LC_ALL=C sort | xargs cat | cksum | cut -d' ' -f1)" \
    "$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sort | uniq -c | xargs | sed 's|^$|none|')" \
    "${PROCESSES:-$(count_processes "$PYTHON")}"
FACTS
}

# Reports the hosts that are not usable or that differ from the first one. All hosts are queried at the same time.
check_hosts() {
    local host facts first="" errors=() line answers
    answers=$(mktemp -d)
    line=$(printf 'cd %q && home=%q PYTHON=%q PROCESSES=%q bash -c %q' \
        "$PWD" "$home" "$(python_path)" "$processes" "$(facts_command)")
    for host in "${names[@]}"; do
        { over_ssh "$host" "$line" >"$answers/$host" 2>"$answers/$host.error" </dev/null || rm -f "$answers/$host"; } &
    done
    wait
    for host in "${names[@]}"; do
        if [[ ! -f $answers/$host ]]; then
            errors+=("The host $host is not usable: $(tail -n 1 "$answers/$host.error" | tr -d '\r')")
            continue
        fi
        facts=$(cat "$answers/$host")
        first=${first:-$facts}
        [[ $facts == "$first" ]] || errors+=("The host $host differs from ${names[0]}: $facts, but ${names[0]} has $first")
    done
    rm -rf "$answers"
    if [[ ${#errors[@]} -gt 0 ]]; then
        printf 'error: %s\n' "${errors[@]}" >&2
        exit 2
    fi
}

# Starts an agent on each host and prints the output of all. With MIN:MAX nodes the training ends with the head. With a
# fixed number of nodes the first failure stops all agents.
run_everywhere() {
    local host line arguments=(--nodes "$nodes" --head "$head" --id "$id" --restarts "$restarts" --left-code "$left_code") followers=() code=0 index
    check_hosts
    [[ -z $processes ]] || arguments+=(--processes "$processes")
    line=$(printf 'cd %q && PYTHON=%q bash %q' "$PWD" "$(python_path)" "$home/launch/lib/attach.sh")
    if [[ $dry_run == yes ]]; then
        for host in "${names[@]}"; do
            printf '%s %s %q\n' "${CLOZE_SSH:-ssh}" "$host" "$line start $id$(printf ' %q' "${arguments[@]}" "$@")"
        done
        return
    fi
    trap 'stop_everywhere' TERM INT HUP USR1
    for host in "${names[@]}"; do
        follow "$host" "$line" "start $id$(printf ' %q' "${arguments[@]}" "$@")" > >(sed -u "s/^/[$host] /") 2>&1 &
        followers+=($!)
    done
    if [[ $nodes == *:* ]]; then
        end_of "${followers[0]}" || code=$?
        # The other agents have ended with the head, or would wait for it.
        stop_everywhere
    else
        for index in "${!followers[@]}"; do
            end_of "${followers[index]}" || code=$?
            [[ $code == 0 ]] || break
        done
        [[ $code == 0 ]] || stop_everywhere
    fi
    exit "$code"
}

# Waits for a process of this shell, even if a signal interrupts `wait`.
end_of() {
    local code=0
    while true; do
        code=0
        wait "$1" || code=$?
        kill -0 "$1" 2>/dev/null || break
    done
    wait "$1" 2>/dev/null || code=$?
    return "$code"
}

# Prints the output of one host's agent until it ends, and returns its exit code. Restores a broken connection.
follow() {
    local host=$1 line=$2 action=$3 attempt code
    trap '' INT HUP USR1
    for ((attempt = 0; attempt < FOLLOW_ATTEMPTS; attempt++)); do
        code=0
        over_ssh "$host" "$line $action" </dev/null || code=$?
        [[ $code == 255 ]] || break
        [[ $attempt -gt 0 ]] || echo "The ssh connection to $host ended. Its agent may still run; reconnecting every $FOLLOW_SECONDS s"
        action="again $id"
        sleep "$FOLLOW_SECONDS"
    done
    return "$code"
}

stop_everywhere() {
    local host
    for host in "${names[@]}"; do
        over_ssh "$host" "$(printf 'bash %q stop %q' "$home/launch/lib/attach.sh" "$id")" </dev/null 2>/dev/null &
    done
}
