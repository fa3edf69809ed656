#!/usr/bin/env bash
# One machine: a CPU, or one or more GPUs or TPU chips of one host. All of its devices are used; --mesh says how.
#   CONFIG=experiments/configs/pretrain.py:rope WORKDIR=runs/rope experiments/launch/one_machine.sh --mesh=fsdp
set -euo pipefail
: "${CONFIG:?CONFIG=FILE[:ARG]}" "${WORKDIR:?WORKDIR=DIR}"

exec python -m experiments.train --config="$CONFIG" --workdir="$WORKDIR" "$@"
