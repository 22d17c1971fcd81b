#!/usr/bin/env bash
# Ends this Slurm with its jobs, and forgets them.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
name=slurm-plain
. ./slurm.sh

stop_slurm
