#!/usr/bin/env bash
# Measures the speed of one GPU in at most ten minutes, without a network. experiments/benchmarks/card.py says what it
# measures and which flags may follow. Figures are appended to $OUT/speed.jsonl as they come.
#   OUT=results experiments/launch/one_gpu_speed.sh [--seconds=560] [--variants=494m:16,smollm_1.7b:8]
# BUNDLE=DIR: wheels of what the machine lacks, which are installed first, without a network (docs/howto/gpu.md).
set -euo pipefail
: "${OUT:?OUT=DIR}"
mkdir -p "$OUT"
if [ -n "${BUNDLE:-}" ]; then
  python3 -m pip install --quiet --no-index --no-deps "$BUNDLE"/*.whl
fi
export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
export XLA_PYTHON_CLIENT_PREALLOCATE=false # torch needs memory too, in a process of its own
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${TMPDIR:-/tmp}/jax_cache}
exec python3 -m experiments.benchmarks.card --jsonl="$OUT/speed.jsonl" "$@"
