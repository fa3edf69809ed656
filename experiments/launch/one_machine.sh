#!/usr/bin/env bash
# Trains on all devices of one machine: its CPU, GPUs or TPU chips; --mesh arranges them.
#   CONFIG=experiments/configs/pretrain.py:rope WORKDIR=runs/rope experiments/launch/one_machine.sh --mesh=fsdp
set -euo pipefail
: "${CONFIG:?CONFIG=FILE[:ARG]}" "${WORKDIR:?WORKDIR=DIR}"

exec python -m experiments.train --config="$CONFIG" --workdir="$WORKDIR" "$@"
