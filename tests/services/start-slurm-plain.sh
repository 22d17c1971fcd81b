#!/usr/bin/env bash
# A second Slurm, which keeps no records, takes arrays of at most 1,000 elements and follows processes without cgroups;
# see environment.sh for what its clients need.
set -euo pipefail
cd "$(dirname "$0")"
name=slurm-plain
. ./slurm.sh

may
need slurmctld=slurm-wlm munged=munge
write_conf 16827 <<END
MaxArraySize=1001
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherParams=OverMemoryKill
END
start_munged
start_slurm
echo "$(slurmctld -V) without slurmdbd, $variables"
