#!/usr/bin/env bash
# Prints the root file system of the image busybox, made of this machine's own static busybox: no registry is asked.
set -euo pipefail
cd "$(dirname "$0")"

if ! [ -x /bin/busybox ] || ldd /bin/busybox >/dev/null 2>&1; then
    ../../../tools/apt.sh busybox-static
fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
. ./root.sh
tar -C "$root" --numeric-owner --owner=0 --group=0 -c .
