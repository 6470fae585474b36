#!/usr/bin/env bash
# Writes the manifest of a Kubernetes JobSet for a TPU slice or several, one pod a host, for `kubectl apply -f -`:
#
#   tools/launch/gke.sh IMAGE NAME tpu-v5p-slice 4x4x4 1 configs/kaleido_14b_pretrain.py /data/runs/14b | kubectl apply -f -
#
# Arguments: the container image (with `kaleido` and this repository as its working directory), a name, the accelerator and
# topology as GKE labels nodes, how many slices, the config, the work directory, and overrides. The volume claim
# KALEIDO_CLAIM (default kaleido-data) is mounted at /data. Pods have KALEIDO_CHIPS (default 4) chips each.
set -euo pipefail

if [[ $# -lt 7 ]]; then
  echo "usage: $0 IMAGE NAME ACCELERATOR TOPOLOGY SLICES CONFIG WORKDIR [section.field=value ...]" >&2
  exit 2
fi
image=$1 name=$2 accelerator=$3 topology=$4 slices=$5 config=$6 workdir=$7
shift 7

chips=1
for side in ${topology//x/ }; do chips=$((chips * side)); done
per_pod=${KALEIDO_CHIPS:-4}
hosts=$(((chips + per_pod - 1) / per_pod))
arguments=
for word in train "$config" --workdir "$workdir" --distributed auto "$@"; do
  word=${word//\\/\\\\}
  arguments+=", \"${word//\"/\\\"}\""
done
cat <<MANIFEST
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  # Pods end together: one that saved (75) or lost a peer (77) makes all start again, from the newest checkpoint.
  failurePolicy:
    maxRestarts: ${KALEIDO_RESTARTS:-20}
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          # Wrong usage, bad input, a full disk and a diverged run are for a person.
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes: {operator: In, values: [2, 65, 70, 74, 76]}
          template:
            spec:
              restartPolicy: Never
              # From SIGTERM to SIGKILL: a step and a checkpoint.
              terminationGracePeriodSeconds: 180
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
              containers:
                - name: kaleido
                  image: $image
                  command: ["kaleido"]
                  args: [${arguments#, }]
                  env:
                    - {name: JAX_COMPILATION_CACHE_DIR, value: "$workdir/compiled"}
                  resources:
                    limits: {google.com/tpu: $per_pod}
                  volumeMounts:
                    - {name: data, mountPath: /data}
              volumes:
                - name: data
                  persistentVolumeClaim: {claimName: ${KALEIDO_CLAIM:-kaleido-data}}
MANIFEST
