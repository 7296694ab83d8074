# Sourced by multi_node.sh: looks at all hosts of a file, starts an agent on each over ssh, and follows them.
# shellcheck shell=bash disable=SC2154  # what multi_node.sh has read: names nodes head id processes restarts left_code dry_run

# How often an ssh that broke is tried again, and how long between two tries; the agent does not depend on it.
FOLLOW_TRIES=120
FOLLOW_SECONDS=5

# Runs a line on a host. ssh gives up a connection that is silent for 15 s.
over_ssh() {
    local ssh=(ssh) host=$1
    shift
    [[ -z ${CLOZE_SSH:-} ]] || read -ra ssh <<<"$CLOZE_SSH"
    "${ssh[@]}" -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3 "$host" "$@"
}

# What must be the same everywhere, in one line.
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

# Names the hosts that cannot be used, or are not like the first; all are asked at the same time.
check_hosts() {
    local host facts first="" wrong=() line answers
    answers=$(mktemp -d)
    line=$(printf 'cd %q && home=%q PYTHON=%q PROCESSES=%q bash -c %q' \
        "$PWD" "$home" "$(python_path)" "$processes" "$(facts_command)")
    for host in "${names[@]}"; do
        { over_ssh "$host" "$line" >"$answers/$host" 2>"$answers/$host.error" </dev/null || rm -f "$answers/$host"; } &
    done
    wait
    for host in "${names[@]}"; do
        if [[ ! -f $answers/$host ]]; then
            wrong+=("$host cannot be used: $(tail -n 1 "$answers/$host.error" | tr -d '\r')")
            continue
        fi
        facts=$(cat "$answers/$host")
        first=${first:-$facts}
        [[ $facts == "$first" ]] || wrong+=("$host differs from ${names[0]}: $facts (there: $first)")
    done
    rm -rf "$answers"
    if [[ ${#wrong[@]} -gt 0 ]]; then
        printf 'error: %s\n' "${wrong[@]}" >&2
        exit 2
    fi
}

# Starts an agent on each host and shows what they say. With MIN:MAX nodes the head's end counts; else the first failure
# ends all.
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
        # The others find the head gone, or have ended with it.
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

# Waits for a process of this shell, also where a signal interrupts the waiting.
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

# One host: its agent's output until it ends, and its exit code; a connection that breaks is made again.
follow() {
    local host=$1 line=$2 action=$3 try code
    trap '' INT HUP USR1
    for ((try = 0; try < FOLLOW_TRIES; try++)); do
        code=0
        over_ssh "$host" "$line $action" </dev/null || code=$?
        [[ $code == 255 ]] || break
        [[ $try -gt 0 ]] || echo "ssh to $host has ended; its agent may go on, and is looked for every $FOLLOW_SECONDS s"
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
