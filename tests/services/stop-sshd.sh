#!/usr/bin/env bash
# Ends this sshd with all that was started through it, and forgets its keys and its user.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
name=sshd
. ./sshd.sh

left() { # the processes that serve a connection still, even of a killed sshd, and those that were started through one
    ss -Htnp "sport = :$port" | grep -o 'pid=[0-9]*'
    grep -lszE "^SSH_CONNECTION=127\.0\.0\.1 [0-9]+ 127\.0\.0\.1 $port\$" /proc/[0-9]*/environ
    ! is_user_ours || find /proc/[0-9]*/exe -user "$user" -lname '/*' 2>/dev/null
}

end_all() { # until there are no more: some may be starting others
    local pid pids _
    for _ in $(seq 100); do
        pids=$(left | grep -o '[0-9]*' | sort -u)
        [ -n "$pids" ] || return 0
        for pid in $pids; do
            kill -KILL "$pid" 2>/dev/null || true
        done
        sleep 0.05
    done
    echo "$name: cannot be ended: ${pids//$'\n'/ }"
    return 1
}

[ -d "$base" ] || exit 0
end sshd
[ ! -e "$base/log/sshd.log" ] || end_all || exit 1 # without it the port was another's
! is_user_ours || userdel --force "$user" || exit 1 # by force, as who is dead may not have been buried
if [ -e "$base/made-own" ] && ! pidof sshd >/dev/null; then
    rmdir "$own"
fi
rm -rf "$base"
