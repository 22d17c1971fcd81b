# Sourced by the scripts that start and stop a scheduler; `name` is the system's.
. ./common.sh
ports=${WFL_PORTS:-0} # see environment.sh
variables=$(./environment.sh "$name")
mapfile -t surroundings <<<"$variables"
export "${surroundings[@]}"

may() { # fails, with the reason, where it cannot be started
    is_root && is_short "$base" || return
    mkdir -p "$base"/{log,run}
    chmod 755 "$base" "$base/run"
    # For shells: `. BASE/env.sh`.
    sed "s/.*/export '&'/; s|^export 'PATH=\([^:]*\):.*|export PATH=\1:\"\$PATH\"|" <<<"$variables" >"$base/env.sh"
}

up() { # up DAEMON : whether it is alive
    runs "$1" "$(pid_of "$1")"
}

pid_of() { # pid_of DAEMON : the file with its number
    echo "$base/run/$1.pid"
}

begin() { # begin PORT DAEMON [ARGUMENT...] : starts what listens there, unless another's does: clients would ask that one
    if (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then
        echo "$name: port $1 is in use by another program"
        return 1
    fi
    # Nothing of the starter's environment: Grid Engine's jobs would have it.
    env -i "${surroundings[@]}" PATH=/usr/lib/gridengine:/usr/sbin:/usr/bin:/sbin:/bin "${@:2}" \
        >"$base/log/$2.out" 2>&1 </dev/null && return
    echo "$name: $2 does not start: $(head -n 1 "$base/log/$2.out")"
    return 1
}

await() { # await COMMAND... : until it succeeds, a minute at most; then the ends of the logs are told
    local _ end=$((SECONDS + 60))
    until "$@" >"$base/log/await" 2>&1; do
        if [ "$SECONDS" -gt "$end" ]; then
            echo "$name: no success of $*: $(tail -qn 1 "$base/log/await" "$base"/log/*.log | tr '\n' ' ')"
            return 1
        fi
        sleep 0.1
    done
}

end() { # end DAEMON... : at once, as nothing that they know is kept
    local daemon pid
    for daemon in "$@"; do
        up "$daemon" || continue
        pid=$(cat "$(pid_of "$daemon")")
        kill -KILL "$pid"
        while [ -e "/proc/$pid/exe" ]; do sleep 0.05; done
    done
}

end_left() { # end_left LINE SUPERVISOR NAME : ends the jobs, which outlive daemons: of the processes that have this
    # line in their environments the supervisors, with all that they have started, and those with a variable NAME
    local file pid
    for file in $(grep -lszFx "$1" /proc/[0-9]*/environ); do
        pid=${file#/proc/} pid=${pid%/environ}
        case "$(readlink "/proc/$pid/exe")" in
            "$2") end_tree "$pid" ;;
            *) ! grep -qsz "^$3=" "$file" || kill -KILL "$pid" 2>/dev/null || true ;;
        esac
    done
}

end_tree() { # end_tree PID : ends it with its descendants
    local child
    for child in $(pgrep -P "$1"); do
        end_tree "$child"
    done
    kill -KILL "$1" 2>/dev/null || true
}

leave_groups() { # leave_groups NAME : the control groups of this name, when the last of their processes has gone
    local _
    for _ in $(seq 100); do
        find /sys/fs/cgroup/*/"$1" -depth -type d -exec rmdir {} + 2>/dev/null && return
        [ -n "$(find /sys/fs/cgroup -maxdepth 2 -name "$1")" ] || return 0
        sleep 0.05
    done
}
