#!/usr/bin/env bash
# Ends Podman's service with its containers; images stay for the next start.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
name=podman
. ./daemon.sh

[ -e "$base/containers.conf" ] || exit 0
export CONTAINERS_CONF=$base/containers.conf
own=(podman --root "$base/root" --runroot "$base/run")
# Containers are no children of the service: they are removed whether it runs or not.
"${own[@]}" rm --all --force --time 0 --volumes >"$base/log" || exit 1
runs podman && stop "$(cat "$pid_file")"
unmount_all
remove_bridge cni-podman0 podman
rm -rf "$base/run" "$base/tmp" "$pid_file" "$socket" # what stays: the images
