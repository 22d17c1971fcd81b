#!/usr/bin/env bash
# All tests on the oldest Python of this machine; unit tests and conformance of processes on the newest too.
# A missing system is a failure. Closes with a table of what ran where.
set -euo pipefail
cd "$(dirname "$0")/.."

export WFL_REQUIRE_ALL=1
oldest=$(tools/pythons.sh oldest) newest=$(tools/pythons.sh newest)
failed=0
rm -rf build/tests
mkdir -p build/tests
places=$(mktemp -d)
trap 'jobs -p | xargs -r kill; rm -rf "$places"' EXIT
suite() { # suite NAME PYTHON VENV TESTS : one run of pytest, with a result file of this name
    make test SUITE="$1" PYTHON="$2" VENV="$3" TESTS="$4"
}

make binary PYTHON="$oldest" VENV=.venv-oldest || failed=1 # and with it what tests/binary/ builds with
make .venv-oldest/.has-test PYTHON="$oldest" VENV=.venv-oldest

# Jobs on clusters mostly wait for their schedulers: these suites run beside the others, one after another for each,
# with temporary directories of their own, since cases count what is left there.
beside=()
lane() { # lane SITES TESTS : beside what follows
    mkdir "$places/${1%,*}"
    WFL_SERVICES=${TMPDIR:-/tmp} TMPDIR=$places/${1%,*} \
        suite "$1" "$oldest" .venv-oldest "$2 --wfl-sites $1" >"build/tests/$1.log" 2>&1 &
    beside+=("$!:$1")
}
lane slurm,slurm-plain tests/conformance
lane grid-engine,drmaa tests/conformance
suite python "$oldest" .venv-oldest "tests --ignore=tests/conformance --ignore-glob=tests/faults/test_kubernetes_*" || failed=1
# A node of Kubernetes takes all of a small machine for its pods: not beside tests that count time. WFL_KUBERNETES_CASES
# names less than all.
lane kubernetes,kubernetes-files "${WFL_KUBERNETES_CASES:-tests/conformance tests/faults/test_kubernetes_*.py}"
suite conformance "$oldest" .venv-oldest \
    "tests/conformance --wfl-sites process,process-store,fake,fake-asked,docker,podman" || failed=1
if [ "$newest" != "$oldest" ]; then
    suite python "$newest" .venv-newest \
        "tests/unit tests/conformance --wfl-sites process,process-store,fake,fake-asked" || failed=1
fi
for one in "${beside[@]}"; do
    wait "${one%%:*}" || failed=1
    cat "build/tests/${one#*:}.log"
done
"$oldest" tools/summary.py build/tests || failed=1
exit "$failed"
