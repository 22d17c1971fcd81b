#!/usr/bin/env bash
# Podman's service, rootful, without systemd or registry, for tests; see address.sh for where it listens.
set -euo pipefail
cd "$(dirname "$0")"
name=podman
. ./daemon.sh

may
# runc, as crun refuses hosts that have both versions of cgroups; the plug-ins make the bridge.
need podman=podman runc=runc curl=curl ip=iproute2 iptables=iptables catatonit=catatonit
[ -x /usr/lib/cni/bridge ] || ../../tools/apt.sh containernetworking-plugins

limits() { # the service's own: without CAP_SYS_RESOURCE a container cannot have Podman's defaults, which are higher
    local processes most
    processes=$(ulimit -H -u) most=$(cat /proc/sys/kernel/pid_max)
    [ "$processes" != unlimited ] && [ "$processes" -lt "$most" ] || processes=$most # as Podman limits itself
    printf '"nofile=%s:%s", "nproc=%s:%s"' "$(ulimit -H -n)" "$(ulimit -H -n)" "$processes" "$processes"
}
if ! runs podman; then
    ./stop-podman.sh # what a killed service has left
    [ -e /sys/class/net/cni-podman0 ] || touch "$base/made-cni-podman0"
    cat >"$base/containers.conf" <<END
[containers]
default_ulimits = [$(limits)]
init_path = "$(command -v catatonit)"
[network]
network_config_dir = "$base/networks"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
tmp_dir = "$base/tmp"
END
    mkdir -p "$base/tmp" # its place too: conmon notes there that memory ran out
    (cd "$base/tmp" && TMPDIR=$PWD CONTAINERS_CONF=$base/containers.conf exec setsid podman \
        --root "$base/root" --runroot "$base/run" system service --time 0 "$address") \
        >"$base/log" 2>&1 </dev/null &
    echo $! >"$pid_file"
fi
wait_until_up podman
image busybox latest sh
image python 3.11 python3
echo "podman $(ask /version | sed 's/.*"Version":"\([^"]*\)","ApiVersion.*/\1/') at $address"
