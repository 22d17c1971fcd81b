# Sourced by the scripts that start and stop sshd.
. ./cluster.sh
base=$WFL_SSHD port=$WFL_SSHD_PORT user=$WFL_SSHD_USER
own=/run/sshd # the directory that every sshd wants to have, and cannot be told of

home_of_user() { # nothing where there is no such user
    getent passwd "$user" | cut -d : -f 6
}

is_user_ours() { # whether start-sshd.sh made the user
    [ "$(home_of_user)" = "$base/home" ]
}
