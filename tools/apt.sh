#!/usr/bin/env bash
# tools/apt.sh PACKAGE... : installs Debian packages when this is root on a Debian; else says what to type, and fails.
set -euo pipefail

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "needed, and not here: $*" >&2
    echo "on Debian or Ubuntu, type:  sudo apt-get update && sudo apt-get install -y $*" >&2
    exit 1
fi
echo "installing with apt-get: $*" >&2
export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -o DPkg::Lock::Timeout=300) # seconds to wait for another apt-get
if ! told=$({ "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "$@"; } </dev/null 2>&1); then
    echo "$told" >&2
    exit 1
fi
