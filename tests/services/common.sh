# Sourced by what starts and stops any system; `name` is the system's.

is_root() { # fails, with the reason, where it is not
    [ "$(id -u)" = 0 ] && return
    echo "$name is started as root here, and this is $(id -un)"
    return 1
}

is_short() { # is_short PATH : a path to a socket has 107 bytes at most, and the daemons make some below this one
    [ "${#1}" -le 60 ] && return
    echo "$1 is too long for a socket: set TMPDIR to a shorter path"
    return 1
}

need() { # need COMMAND=PACKAGE... : installs the packages whose commands or files are not here, and starts nothing
    local pair lacks=() policy=/usr/sbin/policy-rc.d made='' failed=0
    for pair in "$@"; do
        command -v "${pair%=*}" >/dev/null || [ -e "${pair%=*}" ] || lacks+=("${pair#*=}")
    done
    [ "${#lacks[@]}" = 0 ] && return
    if [ ! -e "$policy" ] && [ -w "${policy%/*}" ]; then # what Debian's packages ask before they start a daemon
        made=$policy
        printf '#!/bin/sh\nexit 101\n' >"$made"
        chmod 755 "$made"
    fi
    ../../tools/apt.sh "${lacks[@]}" || failed=1
    [ -z "$made" ] || rm -f "$made"
    return "$failed"
}

runs() { # runs COMMAND [FILE] : whether the daemon whose number is in the file is alive
    local file=${2:-$pid_file}
    [ -s "$file" ] && [ "$(readlink "/proc/$(cat "$file")/exe")" = "$(readlink -f "$(command -v "$1")")" ]
}

stop() { # stop PID : asks it to end, and ends it if it has not within a minute
    local _
    kill "$1" 2>/dev/null || return 0
    for _ in $(seq 600); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null || true
}

delete_containers() { # delete_containers DIRECTORY : those that runc has there, with their processes
    local id
    [ -d "$1" ] || return 0
    for id in $(runc --root "$1" list --quiet); do
        runc --root "$1" delete --force "$id"
    done
}

end_containerd() { # end_containerd WORDS : containerd and its shims that have these in their command lines
    local line number
    for line in $(grep -lsF "$1" /proc/[0-9]*/cmdline); do
        number=${line#/proc/} number=${number%/cmdline}
        case "$(readlink "/proc/$number/exe")" in */containerd*) stop "$number" ;; esac
    done
}

unmount_all() { # what is still mounted below the directory, innermost first
    awk -v base="$base/" 'index($2, base) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r -n 1 umount
}
