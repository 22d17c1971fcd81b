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
places=$(mktemp -d "${TMPDIR:-/tmp}/wflXXXX") # short: sockets are below it
chmod 755 "$places" # jobs of other users have files below it
trap 'jobs -p | xargs -r kill; rm -rf "$places"' EXIT
suite() { # suite NAME PYTHON VENV TESTS : one run of pytest, with a result file of this name
    make test SUITE="$1" PYTHON="$2" VENV="$3" TESTS="$4"
}

make binary PYTHON="$oldest" VENV=.venv-oldest || failed=1 # and with it what tests/binary/ builds with
make .venv-oldest/.has-test PYTHON="$oldest" VENV=.venv-oldest

# What mostly waits for its system runs beside the rest, some suites one after another in a lane; each has a temporary
# directory of its own, since cases count what is left there.
lanes=() logs=()
lane() { # lane NAME=TESTS... : these suites, one after another, beside what follows
    local one
    for one in "$@"; do logs+=("build/tests/${one%%=*}.log"); done
    (
        code=0
        for one in "$@"; do
            place=$(mktemp -d "$places/XXX")
            chmod 755 "$place"
            WFL_SERVICES=${TMPDIR:-/tmp} TMPDIR=$place \
                suite "${one%%=*}" "$oldest" .venv-oldest "${one#*=}" >"build/tests/${one%%=*}.log" 2>&1 || code=1
        done
        exit "$code"
    ) &
    lanes+=("$!")
}
schedulers=(tests/faults/test_{batch_clean,batch_death,drmaa,grid_engine,scheduler_away,slurm}.py)
lane "slurm,slurm-plain=tests/conformance --wfl-sites slurm,slurm-plain" "schedulers=${schedulers[*]}"
lane "grid-engine,drmaa=tests/conformance --wfl-sites grid-engine,drmaa" \
    "ssh,ssh-user=tests/conformance --wfl-sites ssh,ssh-user" \
    "remote=tests/conformance tests/faults/test_remote_*.py --wfl-sites remote,remote-docker,remote-compatible"
suite python "$oldest" .venv-oldest \
    "tests --ignore=tests/conformance --ignore-glob=tests/faults/test_kubernetes_* --ignore-glob=tests/faults/test_ssh_* \
    --ignore-glob=tests/faults/test_remote_* \
    $(printf -- '--ignore=%s ' "${schedulers[@]}")" || failed=1
# A node of Kubernetes takes all of a small machine for its pods: not beside tests that count time. WFL_KUBERNETES_CASES
# names less than all.
lane "kubernetes,kubernetes-files=${WFL_KUBERNETES_CASES:-tests/conformance tests/faults/test_kubernetes_*.py} \
    --wfl-sites kubernetes,kubernetes-files"
suite conformance "$oldest" .venv-oldest \
    "tests/conformance --wfl-sites process,process-store,fake,fake-asked,docker,podman" || failed=1
if [ "$newest" != "$oldest" ]; then
    suite python "$newest" .venv-newest \
        "tests/unit tests/conformance --wfl-sites process,process-store,fake,fake-asked" || failed=1
fi
for one in "${lanes[@]}"; do wait "$one" || failed=1; done
cat "${logs[@]}"
"$oldest" tools/summary.py build/tests || failed=1
exit "$failed"
