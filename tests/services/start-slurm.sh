#!/usr/bin/env bash
# Slurm on this machine alone, with the accounting of slurmdbd and without systemd, for tests; see environment.sh for
# what its clients need.
set -euo pipefail
cd "$(dirname "$0")"
name=slurm
. ./slurm.sh

start_slurmdbd() { # start_slurmdbd PORT : with a MariaDB that listens at a socket alone
    if ! up mariadbd; then
        [ -d "$base/mysql/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$base/mysql" \
            --auth-root-authentication-method=socket --skip-test-db >"$base/log/install-db.log" 2>&1
        setsid mariadbd --no-defaults --user=root --datadir="$base/mysql" --socket="$base/run/mysql.sock" \
            --pid-file="$base/run/mariadbd.pid" --skip-networking --skip-log-bin --innodb-buffer-pool-size=128M \
            --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 >"$base/log/mariadbd.log" 2>&1 </dev/null &
    fi
    up slurmdbd && return
    await mariadb-admin --no-defaults --socket="$base/run/mysql.sock" ping
    (umask 077 && cat >"$base/slurmdbd.conf") <<END
AuthType=auth/munge
AuthInfo=socket=$base/run/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$1
SlurmUser=root
LogFile=$base/log/slurmdbd.log
PidFile=$base/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
END
    surroundings+=(MYSQL_UNIX_PORT="$base/run/mysql.sock")
    begin "$1" slurmdbd
    await timeout 10 sacctmgr --noheader --parsable2 show cluster
    [ -n "$(sacctmgr --noheader --parsable2 show cluster format=cluster)" ] ||
        sacctmgr --immediate add cluster "$name" >"$base/log/add-cluster" 2>&1
}

may
need slurmctld=slurm-wlm munged=munge slurmdbd=slurmdbd mariadbd=mariadb-server
write_conf 16817 <<END
MaxArraySize=100001
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=$((16819 + ports))
AccountingStoragePass=$base/run/munge.sock
$(tracking)
END
start_munged
start_slurmdbd $((16819 + ports))
start_slurm
echo "$(slurmctld -V) with slurmdbd, $variables"
