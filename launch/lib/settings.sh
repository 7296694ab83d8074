# Sourced by the launchers. Shared functions, and settings of threads, networks and time limits with their reasons.
# shellcheck shell=bash disable=SC2154  # the sourcing script sets home, the folder that contains launch/

# Python package: next to launch/ in a checkout. In an installed package, launch/ is in its folder scripts/.
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

# Prints the help of a script: the comment at its top, without the first line.
show_help() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$1"
    exit 0
}

# Prints the value of an option. Fails if the option is the last argument, or if another option follows.
value_of() {
    [[ $# -ge 2 && $2 != --* ]] || fail "$1 has no value. See $0 --help."
    echo "$2"
}

# Prints the interpreter: PYTHON if set, else that of launch/setup.sh, else that of the environment with the package.
python_path() {
    local python=${PYTHON:-$home/.venv/bin/python}
    [[ -n ${PYTHON:-} || -x $python ]] || python=$(readlink -m "$package/../../../..")/bin/python
    command -v "$python" >/dev/null ||
        fail "There is no Python interpreter at ${PYTHON:-$home/.venv/bin/python}. Run launch/setup.sh, or set one: PYTHON=python3 $0."
    echo "$python"
}

# count_processes PYTHON: prints the number of usable GPUs, or of usable cores if there is no GPU.
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

# Prints the IPv4 address of a host. Rejects a loopback address, which other hosts cannot reach.
address_of() {
    local address
    address=$(getent ahostsv4 "$1" | awk 'NR == 1 {print $1}')
    [[ -n $address ]] || fail "The host $1 has no IPv4 address. Give its IP address, or add it to /etc/hosts."
    [[ $address != 127.* || $1 == 127.* || $1 == localhost ]] ||
        fail "The host $1 resolves to $address, which other hosts cannot reach. Give its IP address, or correct /etc/hosts."
    echo "$address"
}

# Succeeds if an address belongs to this host.
is_here() {
    [[ $1 == 127.* ]] || [[ -n $(ip -4 -o address show to "$1/32") ]]
}

# Prints the network interface of a local address, or the one that routes to a remote address.
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
    # The processes of a host share its cores; by default each process starts a thread on every core.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / processes > 0 ? cores / processes : 1))}
    # Waiting threads sleep after a short spin. Spinning threads would slow down processes on the same cores. Without any
    # spin, a process with two threads is a third slower.
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}
    # A crash inside a library prints the Python stack to the output of the rank.
    export PYTHONFAULTHANDLER=${PYTHONFAULTHANDLER:-1}
    # NCCL prints only warnings, such as faulty links or versions.
    export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
    # A collective of NCCL that exceeds its time limit raises instead of hanging. The limit is a minute longer than
    # trainer.timeout_seconds, so that the run first reports the rank that hangs.
    export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
    if [[ -n $interface ]]; then
        # Workers of several hosts use a new store at each start. torchrun's own store survives a restart, and new workers
        # would read the addresses of old ones from it when hosts join or leave (torch 2.11 to 2.13).
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}
        # On cloud machines the host name often resolves to 127.0.1.1, which gloo and NCCL would announce to other hosts.
        export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
        export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$interface}
    fi
}

# Times of the rendezvous in seconds. join_timeout: wait for the first hosts. last_call_timeout: wait for late hosts. An
# agent that misses 3 heartbeats of 2 s counts as lost. read_timeout limits each request to the head, so that a cut link
# blocks an agent for 10 s instead of a minute. The workers notice a cut link after trainer.timeout_seconds: all of them
# end, and the hosts that can still reach the head continue.
JOIN_SECONDS=600
# shellcheck disable=SC2034  # read by the script that sources this
RENDEZVOUS_TIMES=join_timeout=$JOIN_SECONDS,last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=3,read_timeout=10

# Prints a command and the environment variables that are set for it.
print_command() {
    local name
    for name in PYTHONPATH OMP_NUM_THREADS OMP_WAIT_POLICY GOMP_SPINCOUNT PYTHONFAULTHANDLER NCCL_DEBUG \
        TORCH_NCCL_ASYNC_ERROR_HANDLING TORCH_DISABLE_SHARE_RDZV_TCP_STORE GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME; do
        [[ -z ${!name:-} ]] || echo "$name=${!name} \\"
    done
    printf '%q ' "$@"
    echo
}
