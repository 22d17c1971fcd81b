#!/usr/bin/env bash
# Ends this Kubernetes with all of its pods, and forgets them; images and programs stay for the next start.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
name=kubernetes
. ./kubernetes.sh

[ -d "$base" ] || exit 0
end kubelet kube-scheduler kube-controller-manager kube-apiserver etcd containerd
delete_containers "$base/run/runc/k8s.io"
end_containerd "$containers"
unmount_all
if grep -F " $base/" /proc/mounts; then # what these lead to is not this cluster's
    echo "$name: the above is still mounted"
    exit 1
fi
if [ -e "$base/made-$bridge" ]; then
    ip link delete "$bridge"
    rm "$base/made-$bridge"
fi
leave_groups "$group"
for made in "/var/lib/cni/results/$bridge"-*-eth0; do # what is kept of each pod's network
    pod=${made##*/"$bridge"-} pod=${pod%-eth0}
    rm -f "$made" "${made%/*}/cni-loopback-$pod-lo"
done
find /var/log/containers -lname "$base/*" -delete 2>/dev/null
if ! pidof kubelet >/dev/null; then # which makes this wherever its own directory is
    rm -f /var/lib/kubelet/device-plugins/kubelet.sock
    rmdir /var/lib/kubelet/device-plugins /var/lib/kubelet 2>/dev/null
fi
find "$base" -mindepth 1 -maxdepth 1 ! -name images ! -name bin -exec rm -rf {} +
