#!/usr/bin/env bash
# sshd on this machine alone and without systemd, for tests: root and an ordinary user may log in, with keys alone.
# `ssh -F BASE/config` knows the hosts wfl-root and wfl-user, by these users; wfl-jump and wfl-proxy, which are wfl-user
# behind wfl-root; wfl-secret, with a key that has a passphrase, and wfl-cert, with a certificate. BASE/busybox has
# links to all that busybox can be, for shells that are to have nothing else.
set -euo pipefail
cd "$(dirname "$0")"
name=sshd
. ./sshd.sh
umask 022 # the ordinary user reads here

write() { # write NAME : makes the file of the standard input, and at once: others may be reading it
    cat >"$base/$1.new"
    mv "$base/$1.new" "$base/$1"
}

make_key() { # make_key NAME [PASSPHRASE] : unless it is there
    [ ! -s "$base/$1.pub" ] || return 0
    rm -f "$base/$1"
    ssh-keygen -q -t ed25519 -N "${2:-}" -C "wfl-$1" -f "$base/$1"
}

make_keys() {
    local secret=$base/id_secret.passphrase
    [ -s "$secret" ] || (umask 077 && head -c 15 /dev/urandom | base64 | write id_secret.passphrase)
    make_key host
    make_key ca
    make_key id
    make_key id_secret "$(cat "$secret")"
    make_key id_cert
    [ -s "$base/id_cert-cert.pub" ] ||
        ssh-keygen -q -s "$base/ca" -I wfl -n "root,$user" "$base/id_cert.pub"
    cat "$base/id.pub" "$base/id_secret.pub" | write authorized_keys # not id_cert: its certificate must do
    echo "[127.0.0.1]:$port,[localhost]:$port $(cut -d ' ' -f 1,2 "$base/host.pub")" | write known_hosts
}

make_user() { # the ordinary user, who can do nothing but log in with a key
    if [ -z "$(home_of_user)" ]; then
        # '*' is no password; without it sshd takes the user to be locked out.
        useradd --no-create-home --home-dir "$base/home" --shell /bin/sh --user-group --password '*' "$user"
    elif ! is_user_ours; then
        echo "$name: there is a user $user already, at home in $(home_of_user)"
        return 1
    fi
    mkdir -p "$base/home"
    chmod 700 "$base/home"
    chown "$user:" "$base/home"
}

write_configs() { # sshd's and its clients'
    local lenient='PerSourcePenaltyExemptList 127.0.0.1'
    # StrictModes: /tmp is everybody's. MaxSessions and MaxStartups are the defaults, which clients must do with.
    write sshd_config <<END
ListenAddress 127.0.0.1
Port $port
HostKey "$base/host"
PidFile "$(pid_of sshd)"
AuthorizedKeysFile "$base/authorized_keys"
TrustedUserCAKeys "$base/ca.pub"
StrictModes no
UsePAM no
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthenticationMethods publickey
PermitRootLogin prohibit-password
AllowUsers root $user
AllowTcpForwarding yes
MaxSessions 10
MaxStartups 10:30:100
ClientAliveInterval 5
ClientAliveCountMax 3
LogLevel VERBOSE
# Else bash takes itself for somebody's first shell, and reads a .bashrc that may do anything, such as wait for a lock.
SetEnv SHLVL=1
Subsystem sftp /usr/lib/openssh/sftp-server
END
    # From 9.8 on sshd shuts out for a while who fails to log in a few times, which tests do on purpose.
    ! sshd -t -f "$base/sshd_config" -o "$lenient" 2>"$base/log/lenient" || echo "$lenient" >>"$base/sshd_config"
    write config <<END
Host wfl-root wfl-secret wfl-cert
    User root
Host wfl-jump
    ProxyJump wfl-root
Host wfl-proxy
    ProxyCommand ssh -F "$base/config" -W %h:%p wfl-root
Host wfl-secret
    IdentityFile "$base/id_secret"
Host wfl-cert
    IdentityFile "$base/id_cert"
Host wfl-* !wfl-secret !wfl-cert
    IdentityFile "$base/id"
Host wfl-*
    HostName 127.0.0.1
    Port $port
    User $user
    IdentitiesOnly yes
    UserKnownHostsFile "$base/known_hosts"
    GlobalKnownHostsFile /dev/null
END
}

make_busybox() {
    [ ! -d "$base/busybox" ] || return 0
    rm -rf "$base/busybox.new"
    mkdir "$base/busybox.new"
    busybox --install -s "$base/busybox.new"
    mv "$base/busybox.new" "$base/busybox"
}

answers() { # answers HOST : whether one can log in there
    timeout 10 ssh -n -F "$base/config" -o BatchMode=yes "$1" true
}

may
# busybox-static, as it takes the place of busybox when an image is made of it.
need sshd=openssh-server ssh=openssh-client /usr/lib/openssh/sftp-server=openssh-sftp-server busybox=busybox-static \
    ss=iproute2
make_user
make_keys
make_busybox
[ -e "$own" ] || { touch "$base/made-own" && mkdir -m 755 "$own"; }
write_configs
# By its path, as it starts itself anew for each connection.
up sshd || begin "$port" env "$(command -v sshd)" -f "$base/sshd_config" -E "$base/log/sshd.log"
await answers wfl-root
await answers wfl-user
version=$(ssh -V 2>&1)
version=${version%%[ ,]*}
echo "${version/_/ }, port $port, WFL_SSHD=$base"
