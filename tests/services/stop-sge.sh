#!/usr/bin/env bash
# Ends Grid Engine with its jobs, and forgets them.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
name=sge
. ./sge.sh

[ -d "$base" ] || exit 0
end sge_execd sge_qmaster
end_left "SGE_ROOT=$base" /usr/lib/gridengine/sge_shepherd JOB_ID
rm -rf "$base"
