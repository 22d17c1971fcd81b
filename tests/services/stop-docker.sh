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
delete_containers "$base/exec/runtime-runc/moby"
end_containerd "$base/exec/containerd/"
unmount_all
remove_bridge docker0 dockerd
rm -rf "$base/exec" "$pid_file" "$socket" # what stays: the images
