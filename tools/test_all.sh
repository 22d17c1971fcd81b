#!/usr/bin/env bash
# All tests on the oldest Python of this machine; unit tests and conformance of processes on the newest too.
# A missing system is a failure. Closes with a table of what ran where.
set -euo pipefail
cd "$(dirname "$0")/.."

export WFL_REQUIRE_ALL=1
oldest=$(tools/pythons.sh oldest) newest=$(tools/pythons.sh newest)
failed=0
rm -rf build/tests
make binary PYTHON="$oldest" VENV=.venv-oldest || failed=1 # and with it what tests/binary/ builds with
make test PYTHON="$oldest" VENV=.venv-oldest || failed=1
if [ "$newest" != "$oldest" ]; then
    make test PYTHON="$newest" VENV=.venv-newest \
        TESTS="tests/unit tests/conformance -k 'not docker and not podman'" || failed=1
fi
"$oldest" tools/summary.py build/tests || failed=1
exit "$failed"
