#!/usr/bin/env bash
# tests/services/address.sh docker|podman: where the system that start-NAME.sh starts is reached. Said here alone.
# Its directory holds all that belongs to the system; what is kept there after a stop is images, for the next start.
set -euo pipefail

place=${WFL_SERVICES:-${TMPDIR:-/tmp}} # WFL_SERVICES: see environment.sh
case "${1:-}" in
    docker | podman) echo "unix://${place%/}/wfl-services/$1/$1.sock" ;;
    *) echo "usage: $0 docker|podman" >&2; exit 2 ;;
esac
