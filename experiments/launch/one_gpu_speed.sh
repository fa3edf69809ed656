#!/usr/bin/env bash
# Speed of one GPU in at most ten minutes, also where no network is: experiments/benchmarks/card.py, which says what it
# measures; its flags may follow. Figures are appended to $OUT/speed.jsonl as they come.
#   OUT=results experiments/launch/one_gpu_speed.sh [--seconds=560] [--variants=494m:16,smollm_1.7b:8]
# BUNDLE=DIR: wheels of what the machine lacks, which are installed first, without a network (docs/howto/gpu.md).
set -euo pipefail
: "${OUT:?OUT=DIR}"
mkdir -p "$OUT"
if [ -n "${BUNDLE:-}" ]; then
  python3 -m pip install --quiet --no-index --no-deps "$BUNDLE"/*.whl
fi
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
export XLA_PYTHON_CLIENT_PREALLOCATE=false # torch, in a process beside ours, needs memory too
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${TMPDIR:-/tmp}/jax_cache}
exec python3 -m experiments.benchmarks.card --jsonl="$OUT/speed.jsonl" "$@"
