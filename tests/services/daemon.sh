# Sourced by the scripts that start and stop a daemon of containers; `name` is the system's.
address=$(./address.sh "$name")
socket=${address#unix://}
base=${socket%/*}
pid_file=$base/pid
. ./common.sh

may() { # fails, with the reason, where daemons of containers cannot be started
    is_root && is_short "$socket" && mkdir -p "$base"
}

ask() { # ask PATH [OPTION...] : one request to the daemon
    curl --silent --show-error --fail --max-time 60 --unix-socket "$socket" "${@:2}" "http://localhost$1"
}

wait_until_up() { # wait_until_up COMMAND : until it answers; the end of its log if it does not
    local _
    for _ in $(seq 600); do
        ask /_ping >"$base/ping" 2>&1 && return
        runs "$1" || break
        sleep 0.1
    done
    echo "$name does not answer: $(tail -n 1 "$base/log")"
    return 1
}

image() { # image NAME TAG COMMAND : makes the image with images/NAME.sh unless it is there
    local made
    ask "/images/$1:$2/json" >"$base/found" 2>&1 && return
    made=$(mktemp "$base/image-XXXXXX")
    "images/$1.sh" >"$made"
    ask "/v1.40/images/create?fromSrc=-&repo=$1:$2&changes=CMD+%5B%22$3%22%5D" \
        --request POST --header 'Content-Type: application/x-tar' --data-binary "@$made" >"$base/found"
    rm -f "$made"
    ask "/images/$1:$2/json" >"$base/found"
}

remove_bridge() { # remove_bridge DEVICE COMMAND : if this start made it, and no other such daemon is here
    { [ -e "$base/made-$1" ] && ! pidof "$2" >/dev/null; } || return 0
    ip link delete "$1" 2>/dev/null || true
    rm -f "$base/made-$1"
}
