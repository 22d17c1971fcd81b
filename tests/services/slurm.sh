# Sourced by the scripts of both Slurms; `name` is the system's.
base=$(./environment.sh "$name")
base=${base#SLURM_CONF=} base=${base%/slurm.conf}
. ./cluster.sh
node=$(hostname -s) # the name of its control groups too: a second Slurm on this machine has its own
[ "$ports" = 0 ] || node+=-$ports

tracking() { # the lines that say how a job's processes are followed: by cgroups where these can be made here
    if ! [ -w /sys/fs/cgroup/memory ] || ! [ -w /sys/fs/cgroup/freezer ]; then
        printf '%s\n' ProctrackType=proctrack/linuxproc TaskPlugin=task/none JobAcctGatherParams=OverMemoryKill
        return
    fi
    printf '%s\n' ProctrackType=proctrack/cgroup TaskPlugin=task/cgroup
    printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no CgroupMountpoint=/sys/fs/cgroup ConstrainRAMSpace=yes \
        >"$base/cgroup.conf"
}

write_conf() { # write_conf PORT : slurm.conf, with the lines of the standard input; slurmd has the next port
    local host
    host=$(hostname -s) port=$(($1 + ports))
    # Processors and memory are declared, not real: jobs in tests sleep more than they compute.
    cat >"$base/slurm.conf.new" <<END
ClusterName=$name
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
AuthInfo=socket=$base/run/munge.sock
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool
SlurmctldPidFile=$base/run/slurmctld.pid
SlurmdPidFile=$base/run/slurmd.pid
SlurmctldLogFile=$base/log/slurmctld.log
SlurmdLogFile=$base/log/slurmd.log
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=300
SlurmdTimeout=300
InactiveLimit=0
MinJobAge=300
KillWait=2
Waittime=0
MaxJobCount=100000
MessageTimeout=60
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1,default_queue_depth=1000,partition_job_depth=0,max_rpc_cnt=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
PriorityType=priority/basic
SlurmdParameters=config_overrides
EnforcePartLimits=ALL
NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 CPUs=64 RealMemory=16000 State=UNKNOWN
PartitionName=debug Nodes=$node Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
$(cat)
END
    mv "$base/slurm.conf.new" "$base/slurm.conf"
}

start_slurm() { # slurmctld and slurmd
    mkdir -p "$base/state" "$base/spool"
    up slurmctld || begin "$port" slurmctld
    up slurmd || begin "$((port + 1))" slurmd -N "$node"
    await is_there
}

is_there() { # whether the node takes jobs
    case "$(timeout 10 sinfo --noheader --format=%t)" in idle | mix | alloc) ;; *) return 1 ;; esac
}

start_munged() {
    up munged && return
    mkdir -p "$base/munge"
    chmod 700 "$base/munge"
    [ -s "$base/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$base/munge/key")
    rm -f "$base/run"/munge*
    munged --force --key-file="$base/munge/key" --socket="$base/run/munge.sock" --pid-file="$base/run/munged.pid" \
        --log-file="$base/log/munged.log" --seed-file="$base/munge/seed" --num-threads=4
}

stop_slurm() { # ends the daemons with all jobs, and forgets these
    [ -d "$base" ] || return 0
    end slurmd slurmctld slurmdbd mariadbd munged
    end_left "SLURM_CONF=$base/slurm.conf" "$(readlink -f "$(command -v slurmstepd)")" SLURM_JOB_ID
    [ ! -e "$base/cgroup.conf" ] || leave_groups "slurm_$node"
    rm -rf "$base"
}
