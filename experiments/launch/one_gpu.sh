#!/usr/bin/env bash
# Runs a study for several seeds, one after the other, on one GPU (or CPU) without a network.
#   experiments/launch/one_gpu.sh STUDY[:SIZE] SECONDS DIR SEED... [-- --config.NAME=VALUE ...]
# Seed N goes to DIR/seed-N, its log to DIR/logs; then `python -m experiments.report DIR` merges all finished seeds of
# DIR, also those of earlier calls, in DIR/seeds.md. After SECONDS the running study gets SIGTERM: it saves and ends, no
# other seed starts, and the same command resumes from there. Compiled programs are kept in JAX_COMPILATION_CACHE_DIR
# (default: DIR/compiled), so that later seeds need not compile. Exit status: 0 if all seeds are done, 75 if the time ran
# out, 1 or 2 if one failed.
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
    # Status 124: TERM was sent. --foreground: to the study only, which still needs the processes that read data.
    timeout --foreground --kill-after=60 "$left" \
      python3 -m experiments.study --config="experiments/studies/$name.py$size" --workdir="$directory/seed-$seed" \
      --config.seed="$seed" "$@" 2> >(tee -a "$directory/logs/seed-$seed.log" >&2) || status=$?
  fi
  if [ "$status" = 124 ] || [ "$status" = 137 ]; then
    merge || true  # it has said why; a seed that is not finished may lack what others have
    echo "the time ran out in seed $seed; the same command resumes from there" >&2
    exit 75
  fi
  [ "$status" = 0 ] || exit "$status"
done
merge
