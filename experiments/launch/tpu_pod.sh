#!/usr/bin/env bash
# Creates a Cloud TPU slice (queued resource) and trains on it, with the same command on each host. From the repository:
#   PROJECT=p ZONE=us-west4-a TYPE=v5litepod-16 CONFIG=experiments/configs/pretrain.py:rope WORKDIR=gs://bucket/rope \
#     experiments/launch/tpu_pod.sh create|status|install|run|stop|log|delete [flags of experiments.train, after run]
# `create` reads TYPE and RUNTIME, `run` CONFIG and WORKDIR. RUNTIME is the image for TYPE: v2-alpha-tpuv5-lite (v5e),
# v2-alpha-tpuv5 (v5p), v2-alpha-tpuv6e (v6e).
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}"
NAME=${NAME:-drope}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
where=(--project="$PROJECT" --zone="$ZONE")

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

action=${1:?create, status, install, run, stop, log or delete}
shift
case $action in
  create) # the request is queued until `status` says ACTIVE; add --spot if the quota is for spot chips
    : "${TYPE:?as v5litepod-16}"
    gcloud compute tpus queued-resources create "$NAME" "${where[@]}" \
      --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "$@" ;;
  status)
    gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format="value(state.state)" ;;
  install) # the committed state of this repository, on each host; uv brings a newer Python than the image's 3.10
    archive=$(mktemp -d)/drope.tar.gz
    git archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$NAME":drope.tar.gz "${where[@]}" --worker=all
    on_all_hosts "mkdir -p drope && tar -xzf drope.tar.gz -C drope && cd drope &&
      python3 -m pip install --quiet --user uv && ~/.local/bin/uv venv --quiet --clear --python=3.12 .venv &&
      ~/.local/bin/uv pip install --quiet --python=.venv -e '.[tpu,gcs,log]'" ;;
  run) # in the background, to survive a lost connection; the hosts find each other through the TPU's metadata
    : "${CONFIG:?FILE[:ARG]}" "${WORKDIR:?gs://...}"
    flags=$(printf ' %q' --config="$CONFIG" --workdir="$WORKDIR" --distributed "$@")
    on_all_hosts "cd drope && nohup .venv/bin/python -m experiments.train$flags >> train.log 2>&1 < /dev/null & echo started" ;;
  stop) # the run saves and ends; `run` resumes it
    on_all_hosts "pkill -TERM -f experiments[.]train" ;;
  log)
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 --command="tail -n 50 drope/train.log" ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force ;;
  *)
    echo "error: $action; allowed: create, status, install, run, stop, log, delete" >&2
    exit 2 ;;
esac
