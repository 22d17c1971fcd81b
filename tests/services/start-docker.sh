#!/usr/bin/env bash
# dockerd without systemd or registry, for tests; see address.sh for where it listens.
set -euo pipefail
cd "$(dirname "$0")"
name=docker
. ./daemon.sh

may
need dockerd=docker.io curl=curl ip=iproute2
# What stands between programs and a daemon in tests: other hosts, certificates, a registry.
need sshd=openssh-server ssh=openssh-client openssl=openssl docker-registry=docker-registry
if ! runs dockerd; then
    ./stop-docker.sh # what a killed daemon has left
    [ -e /sys/class/net/docker0 ] || touch "$base/made-docker0"
    echo '{}' >"$base/daemon.json" # not the machine's own
    mkdir -p "$base/exec"
    # No rules of iptables: published ports go through Docker's proxy, and nothing of the host's is changed.
    setsid dockerd --config-file "$base/daemon.json" --data-root "$base/root" --exec-root "$base/exec" \
        --pidfile "$base/exec/pid" --host "$address" --iptables=false >"$base/log" 2>&1 </dev/null &
    echo $! >"$pid_file"
fi
wait_until_up dockerd
image busybox latest sh
image python 3.11 python3
echo "dockerd $(ask /version | sed 's/.*"Version":"\([^"]*\)","ApiVersion.*/\1/') at $address"
