#!/usr/bin/env bash
#SBATCH --job-name=drope
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
# Trains on the GPUs of SLURM nodes, one process per GPU; JAX finds the others through srun's environment. From the
# repository:
#   CONFIG=experiments/configs/pretrain.py:rope WORKDIR=/shared/runs/rope sbatch experiments/launch/slurm.sh --mesh=fsdp
# WORKDIR and the dataset must be on a file system that all nodes share. Three minutes before the time is over every
# process gets SIGTERM; the run saves and ends with status 75, and the job is queued again and resumes.
set -euo pipefail
: "${CONFIG:?CONFIG=FILE[:ARG]}" "${WORKDIR:?WORKDIR=DIR on a shared file system}"

export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-8}" # since 22.05 srun does not inherit it from sbatch
status=0
srun --kill-on-bad-exit=1 \
  python -m experiments.train --config="$CONFIG" --workdir="$WORKDIR" --shared_workdir --stopped_status=75 "$@" ||
  status=$?
if [ "$status" = 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
