#!/usr/bin/env bash
# Prints a JobSet manifest for TPU slices on GKE: one Job per slice, one pod per host.
#   IMAGE=region-docker.pkg.dev/p/r/drope:1 SLICES=2 HOSTS=4 CHIPS=4 ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x4 \
#     CONFIG=experiments/configs/pretrain.py:rope WORKDIR=gs://bucket/rope \
#     experiments/launch/gke_jobset.sh --mesh=fsdp --config.mesh.dcn_data=2 | kubectl apply -f -
# HOSTS is the number of hosts per slice, CHIPS the number of chips per host (TOPOLOGY 4x4: 4 hosts with 4 chips each).
# The cluster needs JobSet (jobset.sigs.k8s.io) and a node pool for each slice. The working directory of IMAGE is a clone
# of this repository, installed with `-e .[tpu,gcs]`. SERVICE_ACCOUNT (default: default) needs write access to WORKDIR.
# When a pod is preempted it gets SIGTERM, the run saves on all hosts and ends with status 75; JobSet takes this for a
# failure, restarts all pods, and the run resumes.
set -euo pipefail
: "${IMAGE:?}" "${HOSTS:?hosts of a slice}" "${CHIPS:?chips of a host}" "${ACCELERATOR:?as tpu-v5-lite-podslice}"
: "${TOPOLOGY:?as 4x4}" "${CONFIG:?CONFIG=FILE[:ARG]}" "${WORKDIR:?WORKDIR=gs://...}"

quoted() { # as a YAML string: JSON strings are valid ones
  python3 -c 'import json, sys; print(json.dumps(sys.argv[1]))' "$1"
}

arguments=""
for flag in --config="$CONFIG" --workdir="$WORKDIR" --distributed --stopped_status=75 "$@"; do
  arguments+=$'\n'"                    - $(quoted "$flag")"
done

cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ${NAME:-drope}
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: 10
  replicatedJobs:
    - name: slice
      replicas: ${SLICES:-1}
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          completionMode: Indexed
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              serviceAccountName: ${SERVICE_ACCOUNT:-default}
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $ACCELERATOR
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
              containers:
                - name: train
                  image: $(quoted "$IMAGE")
                  command: ["python", "-m", "experiments.train"]
                  args:$arguments
                  ports:
                    - containerPort: 8471
                    - containerPort: 8080
                  resources:
                    limits:
                      google.com/tpu: $CHIPS
YAML
