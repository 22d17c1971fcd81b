#!/usr/bin/env bash
# Kubernetes on this machine alone, without systemd or registry, for tests; see environment.sh for what its clients
# need. Its programs are built from their source, once: see kubernetes/. Started again it starts what has been ended.
set -euo pipefail
cd "$(dirname "$0")"
name=kubernetes
. ./kubernetes.sh

build() { # all programs are one file, kept for all clusters of this user
    local version numbers program programs about=k8s.io/component-base/version
    programs=$(cat kubernetes/{go.mod,go.sum,main.go} | sha256sum | head -c 12)
    programs=${XDG_CACHE_HOME:-$HOME/.cache}/wfl-services/kube-$programs
    version=$(sed -n 's/^\tk8s.io\/kubernetes //p' kubernetes/go.mod)
    if [ ! -x "$programs" ]; then
        go_is_new || return
        IFS=. read -ra numbers <<<"${version#v}"
        echo "building Kubernetes $version, for some minutes, into $programs" >&2
        mkdir -p "${programs%/*}"
        (cd kubernetes && CGO_ENABLED=0 go build -mod=readonly -trimpath -o "$programs.new" -ldflags "-s -w \
            -X $about.gitVersion=$version -X $about.gitMajor=${numbers[0]} -X $about.gitMinor=${numbers[1]}" .) >&2
        mv "$programs.new" "$programs"
    fi
    mkdir -p "$base/bin"
    for program in kube-apiserver kube-controller-manager kube-scheduler kubelet; do
        ln -sf "$programs" "$base/bin/$program"
    done
}

go_is_new() { # fails, with the reason, where there is no Go that builds it
    local wanted found
    wanted=$(sed -n 's/^go //p' kubernetes/go.mod)
    found=$(cd kubernetes && go env GOVERSION 2>/dev/null) || found=none # there, since a Go may fetch a newer one
    printf 'go%s\n' "$wanted" "${found#go}" | sort --version-sort --check=silent && [ "$found" != none ] && return
    echo "$name is built with Go $wanted or later, and here is $found: see https://go.dev/dl/"
    return 1
}

keys() { # of the cluster, of its programs and of the administrator, who the tests are
    local user
    cd "$base/keys"
    umask 077
    openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 3650 -subj /CN=wfl \
        -addext keyUsage=critical,keyCertSign,cRLSign
    signed server kube-apiserver "subjectAltName=IP:127.0.0.1,IP:$server,DNS:localhost,DNS:kubernetes.default.svc"
    signed kubelet-client kube-apiserver/O=system:masters extendedKeyUsage=clientAuth
    openssl genrsa -out accounts.key 2048
    for user in admin/system:masters system:kube-controller-manager/ system:kube-scheduler/ \
        system:node:wfl-node/system:nodes; do
        token=$(openssl rand -hex 16)
        echo "$token,${user%/*},${user%/*},${user#*/}" >>tokens
        cat >"${user%/*}" <<END
apiVersion: v1
kind: Config
clusters: [{name: wfl, cluster: {server: "https://$server", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: "${user%/*}", user: {token: $token}}]
contexts: [{name: wfl, context: {cluster: wfl, user: "${user%/*}"}}]
current-context: wfl
END
    done
    cp admin "$base/kubeconfig"
}

signed() { # signed NAME SUBJECT EXTENSION : a key with a certificate
    openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -subj "/CN=$2" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" -extfile <(echo "$3")
}

daemon() { # daemon PROGRAM [ARGUMENT...] : starts it unless it is alive
    ! up "$1" || return 0
    (cd "$base/run" && exec env -i HOME="$base/run" PATH="$PATH" setsid "$@" >>"$base/log/$1.log" 2>&1 </dev/null) &
    echo $! >"$(pid_of "$1")"
}

is_free() { # is_free PORT : fails, with the reason, if another's program listens there
    ! (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
    echo "$name: port $1 is in use by another program"
    return 1
}

make_bridge() { # with the addresses that the server and the node's daemons listen at
    if [ -e "/sys/class/net/$bridge" ]; then
        echo "$name: there is a network device $bridge already"
        return 1
    fi
    touch "$base/made-$bridge"
    ip link add "$bridge" type bridge
    ip address add "$node/17" dev "$bridge"
    ip address add "$server/32" dev "$bridge"
    ip link set "$bridge" up
}

make_groups() { # the pods' own, so that daemons of a second cluster take none of them for theirs
    local controller file
    [ ! -e /sys/fs/cgroup/cgroup.controllers ] || return 0 # of version 2: below the root
    for controller in /sys/fs/cgroup/*/; do
        mkdir -p "$controller$group"
    done
    for file in cpuset.cpus cpuset.mems; do
        cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset/$group/$file"
    done
}

write_configuration() { # of the daemons of the node
    local root=/$group
    [ ! -e /sys/fs/cgroup/cgroup.controllers ] || root=/
    cat >"$base/containerd.toml" <<END
version = 2
root = "$base/containerd"
state = "$base/run/containerd"
[grpc]
  address = "$containers"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$base/networks"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "$base/run/runc"
END
    mkdir -p "$base/networks"
    # No plug-in touches rules of iptables: pods reach each other and this machine, and nothing else.
    cat >"$base/networks/10-wfl.conflist" <<END
{"cniVersion": "0.4.0", "name": "$bridge", "plugins": [{"type": "bridge", "bridge": "$bridge",
  "ipam": {"type": "host-local", "dataDir": "$base/run/addresses",
    "ranges": [[{"subnet": "$network.0.0/17", "gateway": "$node"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
END
    cat >"$base/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $node
healthzPort: 0
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $base/keys/ca.crt}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix://$containers
podLogsDir: $base/run/logs
volumePluginDir: $base/run/plugins
cgroupDriver: cgroupfs
cgroupRoot: $root
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
failSwapOn: false
failCgroupV1: false
resolvConf: ""
maxPods: 40
serializeImagePulls: false
kubeAPIQPS: 200
kubeAPIBurst: 400
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: "100Mi", nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%"}
nodeStatusUpdateFrequency: 5s
END
}

image() { # image REPOSITORY TAG COMMAND... : makes it with images/, once, and hands it to containerd
    local archive=$base/images/${1##*/}.tar script=images/${1##*/}.sh
    [ -e "$script" ] || script=images/busybox.sh
    if [ ! -s "$archive" ]; then
        mkdir -p "$base/images"
        "$script" | images/archive.sh "$1:$2" "${@:3}" >"$archive.new"
        mv "$archive.new" "$archive"
    fi
    [ -n "$(ctr --address "$containers" --namespace k8s.io images list --quiet "name==$1:$2")" ] ||
        ctr --address "$containers" --namespace k8s.io images import "$archive" >"$base/log/import" 2>&1
}

ask() { # ask PATH : one request to the server, as the administrator
    curl --silent --show-error --fail --max-time 10 --cacert "$base/keys/ca.crt" \
        --header "Authorization: Bearer $(sed -n 's/,admin,.*//p' "$base/keys/tokens")" "https://$server$1"
}

is_ready() { # whether the node takes pods, and the default namespace has the account that they have
    ask /api/v1/nodes/wfl-node | tr -d ' \n' | grep -q '"type":"Ready","status":"True"' &&
        ask /api/v1/namespaces/default/serviceaccounts/default
}

may
build
need etcd=etcd-server containerd=containerd runc=runc ip=iproute2 /usr/lib/cni/bridge=containernetworking-plugins
need curl=curl openssl=openssl kubectl=kubernetes-client
if ! up etcd || ! up containerd || [ ! -e "$base/made-$bridge" ]; then
    ./stop-kubernetes.sh # what a killed cluster has left
    is_free $((16379 + ports))
    is_free $((16380 + ports))
    mkdir -p "$base"/{keys,log,run}
    (keys) >"$base/log/keys.log" 2>&1
    make_bridge
    make_groups
    write_configuration
fi
daemon etcd --data-dir "$base/run/etcd" --listen-client-urls "http://127.0.0.1:$((16379 + ports))" \
    --advertise-client-urls "http://127.0.0.1:$((16379 + ports))" \
    --listen-peer-urls "http://127.0.0.1:$((16380 + ports))" \
    --initial-advertise-peer-urls "http://127.0.0.1:$((16380 + ports))" \
    --initial-cluster "default=http://127.0.0.1:$((16380 + ports))"
daemon containerd --config "$base/containerd.toml"
daemon kube-apiserver --etcd-servers="http://127.0.0.1:$((16379 + ports))" --bind-address="$server" --secure-port=443 \
    --advertise-address="$server" --service-cluster-ip-range="$network.128.0/17" --allow-privileged=true \
    --tls-cert-file="$base/keys/server.crt" --tls-private-key-file="$base/keys/server.key" \
    --client-ca-file="$base/keys/ca.crt" --token-auth-file="$base/keys/tokens" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --service-account-key-file="$base/keys/accounts.key" --service-account-signing-key-file="$base/keys/accounts.key" \
    --service-account-issuer=https://kubernetes.default.svc \
    --kubelet-client-certificate="$base/keys/kubelet-client.crt" \
    --kubelet-client-key="$base/keys/kubelet-client.key" --kubelet-preferred-address-types=InternalIP
await ask /readyz
daemon kube-controller-manager --kubeconfig="$base/keys/system:kube-controller-manager" --leader-elect=false \
    --secure-port=0 --use-service-account-credentials --root-ca-file="$base/keys/ca.crt" \
    --service-account-private-key-file="$base/keys/accounts.key"
daemon kube-scheduler --kubeconfig="$base/keys/system:kube-scheduler" --leader-elect=false --secure-port=0
await ctr --address "$containers" version
image localhost/pause 1 sleep infinity
image docker.io/library/busybox 1 sh
image docker.io/library/python 3.11 python3
daemon kubelet --config="$base/kubelet.yaml" --kubeconfig="$base/keys/system:node:wfl-node" \
    --root-dir="$base/kubelet" --cert-dir="$base/run/kubelet" --hostname-override=wfl-node --node-ip="$node"
await is_ready
echo "Kubernetes $(ask /version | sed -n 's/.*"gitVersion": "v\(.*\)".*/\1/p'), $variables"
