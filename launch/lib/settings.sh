# Sourced by the launchers: what they share, and the settings of networks and time limits, each with its reason.
# shellcheck shell=bash disable=SC2154  # home, the folder that holds launch/, is set by who sources this

# The Python package: next to launch/ in a checkout; in an installed package launch/ is inside it, in scripts/.
package=$home/framework
if [[ -d $package ]]; then
    # Run the checkout whose script was called, regardless of what the interpreter has installed.
    export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}
else
    package=$(dirname "$home")
fi

fail() {
    echo "error: $*" >&2
    exit 2
}

# The lines of a script's head, from the second to the first that is no comment, are its help.
show_help() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$1"
    exit 0
}

# A value of an option: refuses an option that stands last, or before another.
value_of() {
    [[ $# -ge 2 && $2 != --* ]] || fail "$1 needs a value; see $0 --help"
    echo "$2"
}

# The interpreter in PYTHON, the one of launch/setup.sh, or the one whose environment contains the package.
python_path() {
    local python=${PYTHON:-$home/.venv/bin/python}
    [[ -n ${PYTHON:-} || -x $python ]] || python=$(readlink -m "$package/../../../..")/bin/python
    command -v "$python" >/dev/null ||
        fail "no interpreter is at ${PYTHON:-$home/.venv/bin/python}; run launch/setup.sh, or name one: PYTHON=python3 $0"
    echo "$python"
}

# count_processes PYTHON: one for each GPU that this process may use, else for each core.
count_processes() {
    local gpus cores
    read -r gpus cores < <("$1" "$package/machine.py")
    if [[ $gpus -gt 0 ]]; then echo "$gpus"; else echo "$cores"; fi
}

count_cores() {
    local cores
    read -r _ cores < <("$1" "$package/machine.py")
    echo "$cores"
}

# The IPv4 address of a host; the address of a name that means this host's loopback would be of no use to the others.
address_of() {
    local address
    address=$(getent ahostsv4 "$1" | awk 'NR == 1 {print $1}')
    [[ -n $address ]] || fail "the host $1 has no address here; write its IP address, or enter it in /etc/hosts"
    [[ $address != 127.* || $1 == 127.* || $1 == localhost ]] ||
        fail "the host $1 is $address here, which is no address for others; write its IP address, or correct /etc/hosts"
    echo "$address"
}

# True where an address is this host's own.
is_here() {
    [[ $1 == 127.* ]] || [[ -n $(ip -4 -o address show to "$1/32") ]]
}

# The network interface that has an address of this host, or leads to one of another.
interface_to() {
    if [[ $1 == 127.* ]]; then
        echo lo
    elif is_here "$1"; then
        ip -4 -o address show to "$1/32" | awk 'NR == 1 {print $2}'
    else
        ip -4 route get "$1" 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1
    fi
}

export_settings() {
    local python=$1 processes=$2 interface=${3:-} cores
    cores=$(count_cores "$python")
    # Processes of one host share its cores; by default each would take all of them.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / processes > 0 ? cores / processes : 1))}
    # Waiting threads soon sleep: where processes share cores, those that spin take the time of those that compute. Without
    # any spinning a process of two threads makes a third less.
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}
    # A crash inside of a library shows its Python stack in the rank's output.
    export PYTHONFAULTHANDLER=${PYTHONFAULTHANDLER:-1}
    # NCCL says what is wrong with a link or a version, and nothing else.
    export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
    # NCCL raises in the process whose collective ran into its time limit (a minute after trainer.timeout_seconds, by
    # which the rank that hangs is named), rather than hanging.
    export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
    if [[ -n $interface ]]; then
        # Workers of several hosts meet in a store of their own at each start: torchrun's store lives on, and when hosts
        # come or go the new workers would find the addresses of the old ones there (torch 2.11 to 2.13).
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}
        # On cloud machines the host's own name often means 127.0.1.1, which gloo and NCCL would tell the others.
        export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
        export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface}
    fi
}

# How long agents wait for each other (join), for late ones (last_call), and when a silent one counts as lost: after 3
# missed beats of 2 s. read_timeout is for each question to the head, so that a cut link does not hold an agent for a
# minute. What processes notice of a cut is trainer.timeout_seconds: then all end, and those that still meet go on.
JOIN_SECONDS=600
# shellcheck disable=SC2034  # read by the script that sources this
RENDEZVOUS_TIMES=join_timeout=$JOIN_SECONDS,last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=3,read_timeout=10

# Prints a command and what is set for it.
print_command() {
    local name
    for name in PYTHONPATH OMP_NUM_THREADS OMP_WAIT_POLICY GOMP_SPINCOUNT PYTHONFAULTHANDLER NCCL_DEBUG \
        TORCH_NCCL_ASYNC_ERROR_HANDLING TORCH_DISABLE_SHARE_RDZV_TCP_STORE GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME; do
        [[ -z ${!name:-} ]] || echo "$name=${!name} \\"
    done
    printf '%q ' "$@"
    echo
}
