#!/usr/bin/env bash
# Ends dockerd with its containers; images stay for the next start.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
name=docker
. ./daemon.sh

[ -d "$base" ] || exit 0
if runs dockerd; then
    for id in $(ask /containers/json | grep -o '"Id":"[0-9a-f]*"' | cut -d '"' -f 4); do
        ask "/containers/$id/kill" --request POST
    done
    for what in containers networks volumes; do
        ask "/$what/prune" --request POST >"$base/found"
    done
    stop "$(cat "$pid_file")"
fi
# A dockerd that was killed leaves its containers, their shims and containerd behind.
if [ -d "$base/exec/runtime-runc/moby" ]; then
    for id in $(runc --root "$base/exec/runtime-runc/moby" list --quiet); do
        runc --root "$base/exec/runtime-runc/moby" delete --force "$id"
    done
fi
for line in $(grep -lsF "$base/exec/containerd/" /proc/[0-9]*/cmdline); do
    number=${line#/proc/} number=${number%/cmdline}
    case "$(readlink "/proc/$number/exe")" in */containerd*) stop "$number" ;; esac
done
unmount_all
remove_bridge docker0 dockerd
rm -rf "$base/exec" "$pid_file" "$socket" # what stays: the images
