#!/usr/bin/env bash
# All tests on the oldest Python of this machine; unit tests and conformance of processes on the newest too.
# A missing system is a failure. Closes with a table of what ran where.
set -euo pipefail
cd "$(dirname "$0")/.."

export WFL_REQUIRE_ALL=1
oldest=$(tools/pythons.sh oldest) newest=$(tools/pythons.sh newest)
failed=0
rm -rf build/tests build/conformance
mkdir -p build/tests
places=$(mktemp -d "${TMPDIR:-/tmp}/wflXXXX") # short: sockets are below it
chmod 755 "$places" # jobs of other users have files below it
trap 'jobs -p | xargs -r kill; rm -rf "$places"' EXIT
# A case that fails is run again, as a machine that is shared by so many may have been too slow for it once; the summary
# names it, and its log has what it said. One that fails three times, or many that fail, fail the whole.
again=(--reruns 2 --reruns-delay 5 --max-suite-reruns 12 --rerun-show-tracebacks)
suite() { # suite oldest|newest NAME TESTS : one run of pytest, with a result file and a log of this name
    make test SUITE="$2" PYTHON="${!1}" VENV=".venv-$1" TESTS="$3 ${again[*]}" 2>&1 | tee "build/tests/$2-$1.log"
}

make .venv-oldest/.has-test .venv-oldest/.has-binary PYTHON="$oldest" VENV=.venv-oldest

# What mostly waits for its system runs beside the rest, some suites one after another in a lane, as evenly as can be;
# each has a temporary directory of its own, since cases count what is left there.
lanes=()
lane() { # lane oldest|newest NAME TESTS [...] : these suites, one after another, beside what follows
    (
        renice -n "${NICE:-0}" "$BASHPID" >/dev/null
        code=0
        while [ "$#" -gt 0 ]; do
            place=$(mktemp -d "$places/XXX")
            chmod 755 "$place"
            WFL_SERVICES=${TMPDIR:-/tmp} TMPDIR=$place suite "$1" "$2" "$3" >/dev/null || code=1
            shift 3
        done
        exit "$code"
    ) &
    lanes+=("$!")
}
shopt -s nullglob
daemons=(tests/faults/test_{container_*,daemon_away}.py)
schedulers=(tests/faults/test_{batch_clean,batch_death,drmaa,grid_engine,scheduler_away,slurm}.py)
kubernetes=(tests/faults/test_kubernetes_{meddling,rights,away,connections,death}.py) # the first meddles with the node
hosts=(tests/faults/test_{remote_*,server_death,server_deployment,server_misuse,ssh_*}.py)
shopt -u nullglob
requests=tests/faults/test_server_requests.py # ten thousand
pages=(tests/binary tests/docs tests/examples)
elsewhere=(tests/conformance "${daemons[@]}" "${schedulers[@]}" "${kubernetes[@]}" "${hosts[@]}"
    "$requests" "${pages[@]}")

lane oldest slurm "tests/conformance --wfl-sites slurm" \
    oldest schedulers "${schedulers[*]}"
lane oldest grid-engine,drmaa "tests/conformance --wfl-sites grid-engine,drmaa" \
    oldest pages "${pages[*]}"
lane oldest kubernetes-faults "${kubernetes[*]}" \
    oldest ssh-slurm,ssh-grid-engine "tests/conformance --wfl-sites ssh-slurm,ssh-grid-engine"
lane oldest daemons "${daemons[*]}" \
    oldest ssh,ssh-user "tests/conformance --wfl-sites ssh,ssh-user" \
    oldest hosts "${hosts[*]}"
NICE=10 lane oldest requests "$requests" # minutes of one processor, which count no time
make binary PYTHON="$oldest" VENV=.venv-oldest || failed=1
suite oldest python "tests $(printf -- '--ignore=%s ' "${elsewhere[@]}")" || failed=1
# Of the newest Python what can depend on it: not what a shell does, nor whole workflows on systems of their own.
shells=(tests/unit/test_{batch_machine,batch_replay,batch_signal,ssh_attendant,undertaker}.py)
[ "$newest" = "$oldest" ] || lane newest python "tests/unit ${shells[*]/#/--ignore=} \
    tests/conformance --wfl-sites process,fake,fake-asked --wfl-results build/newest"
lane oldest slurm-plain "tests/conformance --wfl-sites slurm-plain" \
    oldest remote "tests/conformance --wfl-sites remote,remote-docker,remote-compatible"
# A node of Kubernetes takes much of a small machine for its pods: not beside the tests above, which count time.
lane oldest kubernetes,kubernetes-files "tests/conformance --wfl-sites kubernetes,kubernetes-files"
suite oldest conformance "tests/conformance --wfl-sites process,process-store,fake,fake-asked,docker,podman" || failed=1
for one in "${lanes[@]}"; do wait "$one" || failed=1; done
for log in build/tests/*.log; do
    printf '\n--- %s\n' "$log"
    cat "$log"
done
"$oldest" tools/summary.py build/tests || failed=1
exit "$failed"
