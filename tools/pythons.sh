#!/usr/bin/env bash
# tools/pythons.sh oldest|newest|all : the Pythons of this machine, from 3.11 on, that really work.
# all: one line for each minor version, "3.N PATH", oldest first.
set -euo pipefail

probe='
import sys
assert sys.version_info >= (3, 11) and sys.implementation.name == "cpython"
assert sys.prefix == sys.base_prefix, "a virtual environment"
import sqlite3, ssl
print(sys.version_info[1], sys.executable)'

# A name may exist and not run (the shims of pyenv); Debian's own may lack ensurepip, which tools/venv.sh installs
# when it can, so it counts here only as a last resort.
candidates() {
    local directory name
    {
        tr ':' '\n' <<<"$PATH"
        ls -d "${HOME:-/nonexistent}"/.pyenv/versions/*/bin 2>/dev/null || true
        printf '%s\n' /usr/local/bin /usr/bin
    } | while read -r directory; do
        for name in "$directory"/python3 "$directory"/python3.1[1-9]; do
            [ -x "$name" ] && echo "$name"
        done
    done
}

found() {
    local name line
    while read -r name; do
        line=$("$name" -c "$probe" 2>/dev/null </dev/null) || continue
        if "$name" -c 'import ensurepip, venv' 2>/dev/null </dev/null; then echo "$line 0"; else echo "$line 1"; fi
    done < <(candidates | awk '!seen[$0]++') | awk '!seen[$2]++' | sort -s -k1,1n -k3,3n
}

all=$(found | awk '!seen[$1]++ { print "3." $1, $2 }')
if [ -z "$all" ]; then
    echo "no Python of 3.11 or newer works here; on Debian or Ubuntu, type:  sudo apt-get install -y python3-venv" >&2
    exit 1
fi
case "${1:-all}" in
    all) echo "$all" ;;
    oldest) echo "$all" | sed -n '1s/.* //p' ;;
    newest) echo "$all" | sed -n '$s/.* //p' ;;
    *) echo "usage: $0 oldest|newest|all" >&2; exit 2 ;;
esac
