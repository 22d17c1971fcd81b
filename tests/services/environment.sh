#!/usr/bin/env bash
# tests/services/environment.sh slurm|slurm-plain|sge|kubernetes|sshd: the variables that a client of what start-NAME.sh
# starts needs, one NAME=VALUE a line, whether it runs or not. Said here alone. For a second one on this machine:
# another TMPDIR, and WFL_PORTS=N, a multiple of 100, by which all of its ports are higher. WFL_SERVICES=DIRECTORY says
# where services are, for tests that have another TMPDIR than these.
set -euo pipefail

place=${WFL_SERVICES:-${TMPDIR:-/tmp}}
base=${place%/}/wfl-services/${1:-}
case "${1:-}" in
    kubernetes) echo "KUBECONFIG=$base/kubeconfig" ;;
    slurm | slurm-plain) echo "SLURM_CONF=$base/slurm.conf" ;;
    sge)
        echo "SGE_ROOT=$base"
        echo "SGE_CELL=default"
        echo "SGE_QMASTER_PORT=$((16464 + ${WFL_PORTS:-0}))"
        echo "SGE_EXECD_PORT=$((16465 + ${WFL_PORTS:-0}))"
        echo "DRMAA_LIBRARY_PATH=$base/libdrmaa.so.1.0"
        echo "PATH=/usr/lib/gridengine:$PATH" # /usr/bin has wrappers, which take six times as long
        ;;
    sshd)
        user=wfl # the ordinary user; a second sshd on this machine has its own
        [ "${WFL_PORTS:-0}" = 0 ] || user+=-$WFL_PORTS
        echo "WFL_SSHD=$base"
        echo "WFL_SSHD_PORT=$((16822 + ${WFL_PORTS:-0}))"
        echo "WFL_SSHD_USER=$user"
        ;;
    *) echo "usage: $0 slurm|slurm-plain|sge|kubernetes|sshd" >&2; exit 2 ;;
esac
