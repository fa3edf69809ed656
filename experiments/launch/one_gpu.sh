#!/usr/bin/env bash
# One GPU (or CPU), without a network: a study for several seeds, one after the other, each in a folder of its own.
#   experiments/launch/one_gpu.sh STUDY[:SIZE] SECONDS DIR SEED... [-- --config.NAME=VALUE ...]
# Seed N goes to DIR/seed-N, its log to DIR/logs; then `python -m experiments.report DIR` merges all finished seeds in
# DIR, those of earlier calls too, into DIR/seeds.md. After SECONDS the study that runs gets SIGTERM: it saves and ends,
# no other seed begins, and the same command goes on from there. Compiled programs are kept in
# JAX_COMPILATION_CACHE_DIR (DIR/compiled unless it is set), so that later seeds need not compile. Exit status: 0 all
# seeds are done, 75 the time ran out, 1 or 2 one failed.
set -euo pipefail
usage="usage: one_gpu.sh STUDY[:SIZE] SECONDS DIR SEED... [-- --config.NAME=VALUE ...]"
study=${1:?$usage} seconds=${2:?$usage} directory=${3:?$usage}
: "${4:?$usage}"
shift 3
seeds=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  seeds+=("$1")
  shift
done
[ $# -eq 0 ] || shift

name=${study%%:*} size=${study#"${study%%:*}"}
mkdir -p "$directory/logs"
export PYTHONUNBUFFERED=1 JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$directory/compiled}"

merge() {
  local reports=("$directory"/seed-*/report.md)
  [ ${#reports[@]} -lt 2 ] || python3 -m experiments.report "$directory"
}

for seed in "${seeds[@]}"; do
  left=$((seconds - SECONDS))
  status=124
  if [ "$left" -gt 0 ]; then
    echo "seed $seed: $left s left"
    status=0
    # Status 124: TERM was sent, to the study alone (--foreground): it still needs the processes that read for it.
    timeout --foreground --kill-after=60 "$left" \
      python3 -m experiments.study --config="experiments/studies/$name.py$size" --workdir="$directory/seed-$seed" \
      --config.seed="$seed" "$@" 2> >(tee -a "$directory/logs/seed-$seed.log" >&2) || status=$?
  fi
  if [ "$status" = 124 ] || [ "$status" = 137 ]; then
    merge
    echo "the time is over in seed $seed; the same command goes on from there" >&2
    exit 75
  fi
  [ "$status" = 0 ] || exit "$status"
done
merge
