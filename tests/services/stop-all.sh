#!/usr/bin/env bash
# Stops what start-all.sh started: runs every stop-NAME.sh beside this file.
set -uo pipefail
cd "$(dirname "$0")" || exit 1

failed=0
for script in stop-*.sh; do
    [ "$script" = stop-all.sh ] && continue
    "./$script" </dev/null || { echo "$script failed" >&2; failed=1; }
done
exit "$failed"
