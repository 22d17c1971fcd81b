#!/usr/bin/env bash
# A second Slurm, which keeps no records and takes arrays of at most 1,000 elements; see environment.sh for what its
# clients need.
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
END
start_munged
start_slurm
echo "$(slurmctld -V) without slurmdbd, $variables"
