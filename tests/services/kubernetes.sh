# Sourced by the scripts that start and stop Kubernetes; `name` is the system's.
base=$(./environment.sh "$name")
base=${base#KUBECONFIG=} base=${base%/kubeconfig}
. ./cluster.sh
PATH=$base/bin:$PATH
containers=$base/run/containerd.sock
group=wfl-kubernetes-$ports # the control group with those of all pods
bridge=wfl$ports # the network device that the pods are connected by
network=10.$((244 - ports / 100 % 200)) # theirs; a second cluster on this machine has another
node=$network.0.1 # this machine in it: where the kubelet listens
server=$network.128.1 # and the API server: the first address of services is that of "kubernetes", so no proxy is needed
