#!/usr/bin/env bash
# Starts every system that has a start-NAME.sh beside this file, one after another, and says what is there.
# A start-NAME.sh installs what it needs, may be run again when its system is up, returns when the system answers,
# and closes with one line that tells its version. Its stop-NAME.sh stops what it started, and nothing else.
set -uo pipefail
cd "$(dirname "$0")" || exit 1

failed=0
printf '%-12s there: %s\n' processes "$(uname -sr), $(nproc) processors"
for script in start-*.sh; do
    name=${script#start-} name=${name%.sh}
    [ "$name" = all ] && continue
    if line=$("./$script" </dev/null | tail -n 1); then
        printf '%-12s there: %s\n' "$name" "$line"
    else
        printf '%-12s FAILED to start: %s\n' "$name" "$line"
        failed=1
    fi
done
exit "$failed"
