# Sourced by the scripts that start and stop Grid Engine.
base=$(./environment.sh "$name")
base=${base#SGE_ROOT=} base=${base%%$'\n'*}
. ./cluster.sh
drmaa=/usr/lib/gridengine-drmaa/lib/libdrmaa.so.1.0

pid_of() { # pid_of DAEMON : the file with its number, which it writes itself
    case "$1" in
        sge_qmaster) echo "$base/spool/qmaster/qmaster.pid" ;;
        sge_execd) echo "$base/spool/execd/localhost/execd.pid" ;;
    esac
}
