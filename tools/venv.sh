#!/usr/bin/env bash
# tools/venv.sh PYTHON DIRECTORY : makes a virtual environment with pip in it; a half-made one is made anew.
set -euo pipefail
python=$1 directory=$2

if ! version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
    echo "$python does not run; name a Python of 3.11 or newer:  make PYTHON=/path/to/python3 ..." >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is Python $version; wfl needs 3.11 or newer:  make PYTHON=/path/to/python3 ..." >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then # Debian keeps ensurepip in a package of its own
    "$(dirname "$0")/apt.sh" "python$version-venv"
fi
"$python" -m venv --clear "$directory"
