#!/usr/bin/env bash
# The same command on every worker of a TPU VM (a slice, or several by a queued resource), started again when preempted:
#
#   tools/launch/tpu_vm.sh NAME ZONE configs/kaleido_14b_pretrain.py gs-mount/runs/14b data.folder=gs-mount/encoded
#
# Arguments: the TPU's name and zone, the config, the work directory (on a disk that all workers share), and overrides.
# The workers must have this repository at KALEIDO_FOLDER (default ~/kaleido_jax) with `kaleido` installed in its .venv.
# KALEIDO_DRY_RUN=1 prints what would be run and ends.
set -euo pipefail

if [[ $# -lt 4 ]]; then
  echo "usage: $0 NAME ZONE CONFIG WORKDIR [section.field=value ...]" >&2
  exit 2
fi
name=$1 zone=$2 config=$3 workdir=$4
shift 4

quoted=$(printf ' %q' "$config" --workdir "$workdir" --distributed auto "$@")
folder=${KALEIDO_FOLDER:-kaleido_jax}
cache=$(printf '%q' "$workdir/compiled")
# 75: saved after a signal; 77, 134: a peer is lost. Each worker starts itself again, and they find each other.
remote="cd $folder && export JAX_COMPILATION_CACHE_DIR=$cache
for attempt in \$(seq ${KALEIDO_RESTARTS:-20}); do
  .venv/bin/kaleido train$quoted && exit 0
  status=\$?
  case \$status in 75 | 77 | 134 | 137) sleep 10 ;; *) exit \$status ;; esac
done
exit \$status"
launch=(gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$remote")
if [[ -n ${KALEIDO_DRY_RUN:-} ]]; then
  printf '%q ' "${launch[@]}"
  echo
  exit 0
fi
exec "${launch[@]}"
