#!/usr/bin/env bash
# One process a node, started again when it is preempted or loses a peer:
#
#   sbatch --nodes=8 --gpus-per-node=8 tools/launch/slurm.sh configs/kaleido_14b_pretrain.py runs/14b data.folder=encoded
#
# Arguments: the config, the work directory (on a disk that all nodes share), and overrides. The environment that sbatch
# is called in must have `kaleido`. KALEIDO_DRY_RUN=1 prints what every node would run and ends.
#SBATCH --job-name=kaleido
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=kaleido-%j.log
set -euo pipefail

if [[ $# -lt 2 ]]; then
  echo "usage: sbatch --nodes=N --gpus-per-node=G $0 CONFIG WORKDIR [section.field=value ...]" >&2
  exit 2
fi
config=$1 workdir=$2
shift 2

# Exit codes of `kaleido train`: 75 stopped by a signal with everything saved, 77 a peer is lost or hangs. A process that
# jax ends because a peer is gone has 134 (SIGABRT), one that was killed 137. Those are started again, from the newest
# checkpoint; all else is for a person.
restarts=${KALEIDO_RESTARTS:-20}
command=(kaleido train "$config" --workdir "$workdir" --distributed auto "$@")
launch=(srun --kill-on-bad-exit=1 --wait=120 "${command[@]}")
if [[ -n ${KALEIDO_DRY_RUN:-} ]]; then
  printf '%q ' "${launch[@]}"
  echo
  exit 0
fi

stopping=
child=
trap 'stopping=1; [[ -z $child ]] || kill -TERM "$child"' TERM
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$workdir/compiled}
for ((attempt = 0; attempt <= restarts; attempt++)); do
  "${launch[@]}" &
  child=$!
  status=0
  wait "$child" || status=$?
  while kill -0 "$child" 2>/dev/null; do # the trap woke us; the processes are still saving
    status=0
    wait "$child" || status=$?
  done
  child=
  case $status in
    0) exit 0 ;;
    75) [[ -z $stopping ]] || exec scontrol requeue "$SLURM_JOB_ID" ;;
    77 | 134 | 137) [[ -z $stopping ]] || exit "$status" ;;
    *) exit "$status" ;;
  esac
  echo "attempt $attempt ended with $status; starting again" >&2
  sleep 10
done
echo "gave up after $restarts restarts" >&2
exit "$status"
