#!/usr/bin/env bash
# Trains on a Slurm allocation: starts a Ray head and workers on its nodes, submits the run as a Ray job, follows it,
# and takes everything down again. See cluster/README.md.
#
#   sbatch cluster/slurm.sh configs/museg_7b.yaml video.store_dir=/local/frames run.dir=/data/runs
#
#SBATCH --job-name=museg
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=72:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --output=museg-%j.log
set -euo pipefail

if (($# == 0)); then
  echo "usage: sbatch cluster/slurm.sh CONFIG.yaml [key=value ...]" >&2
  exit 2
fi
: "${SLURM_JOB_ID:?this script runs inside a Slurm allocation: start it with sbatch}"

# Below Ray's worker ports (10002 to 19999). The nodes are ours alone (--exclusive), so fixed ports do not collide.
readonly GCS_PORT=${GCS_PORT:-6379} DASHBOARD_PORT=${DASHBOARD_PORT:-8265} METRICS_PORT=8080
readonly START_TIMEOUT_S=600
# Ray's own default is 3 s between SIGTERM and SIGKILL: too short for the last checkpoint.
readonly STOP_WAIT_S=300
readonly SUBMISSION=museg-$SLURM_JOB_ID
readonly RAY_LOG=museg-$SLURM_JOB_ID-ray.log

# The clone, with its .venv, lies on a file system that all nodes share.
cd "${SLURM_SUBMIT_DIR:?}"
export PATH=$PWD/.venv/bin:$PATH

# Whoever reaches an open Ray port can run code as this user, so all parts of this cluster share a secret.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
readonly head_node=${nodes[0]}
# This script runs on the first node. With several networks, name the address that the other nodes should use.
HEAD_IP=${HEAD_IP:-$(hostname -I | awk '{print $1}')}
readonly HEAD_IP dashboard=http://$HEAD_IP:$DASHBOARD_PORT

steps=()

# start_ray SRUN-OPTIONS... -- RAY-START-OPTIONS...: `ray start` on some nodes, in the background, as one Slurm step.
start_ray() {
  local placement=()
  while [[ $1 != -- ]]; do
    placement+=("$1")
    shift
  done
  shift
  # A step gets one core unless it asks for the node's.
  srun "${placement[@]}" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
    ray start --block --disable-usage-stats --metrics-export-port="$METRICS_PORT" "$@" \
    >>"$RAY_LOG" 2>&1 &
  steps+=($!)
}

# wait_until WHAT COMMAND...
wait_until() {
  local what=$1 deadline=$((SECONDS + START_TIMEOUT_S)) step
  shift
  until "$@"; do
    for step in "${steps[@]}"; do
      kill -0 "$step" 2>/dev/null || { echo "slurm.sh: Ray ended on a node before $what; see $RAY_LOG" >&2; return 1; }
    done
    if ((SECONDS > deadline)); then
      echo "slurm.sh: no $what after $START_TIMEOUT_S s; see $RAY_LOG" >&2
      return 1
    fi
    sleep 2
  done
  echo "slurm.sh: $what after $SECONDS s"
}

head_answers() {
  (: <"/dev/tcp/$HEAD_IP/$GCS_PORT") 2>/dev/null && (: <"/dev/tcp/$HEAD_IP/$DASHBOARD_PORT") 2>/dev/null
}

all_nodes_joined() {
  python - "$HEAD_IP:$GCS_PORT" "${#nodes[@]}" <<'PYTHON'
import sys
import ray

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))
PYTHON
}

take_down() {
  trap - EXIT INT TERM
  if [[ -n ${submit_pid:-} ]] && kill -0 "$submit_pid" 2>/dev/null; then
    # Asks the driver to end, waits for its last checkpoint.
    ray job stop --address "$dashboard" "$SUBMISSION" || true
  fi
  ((${#steps[@]} == 0)) || kill "${steps[@]}" 2>/dev/null || true
  wait
}
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_ray --nodes=1 --ntasks=1 --nodelist="$head_node" -- \
  --head --node-ip-address="$HEAD_IP" --port="$GCS_PORT" \
  --dashboard-host="$HEAD_IP" --dashboard-port="$DASHBOARD_PORT" --temp-dir="/tmp/ray-$SLURM_JOB_ID"
wait_until "Ray head on $head_node" head_answers
if ((${#nodes[@]} > 1)); then
  start_ray --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head_node" -- \
    --address="$HEAD_IP:$GCS_PORT"
fi
wait_until "${#nodes[@]} nodes" all_nodes_joined

# In the background and waited for, so that Slurm's TERM before the time limit is handled at once.
ray job submit --address "$dashboard" --submission-id "$SUBMISSION" \
  --runtime-env-json "{\"env_vars\": {\"RAY_JOB_STOP_WAIT_TIME_S\": \"$STOP_WAIT_S\"}}" \
  -- museg train -c "$@" &
submit_pid=$!
wait "$submit_pid"
