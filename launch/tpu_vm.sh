#!/usr/bin/env bash
# Manage a TPU VM, or the hosts of a pod slice, and run tp_jax on all its workers.
#   bash launch/tpu_vm.sh create --name=N --zone=Z --accelerator-type=T [--spot]
#   bash launch/tpu_vm.sh queue  --name=N --zone=Z --accelerator-type=T [--spot]
#   bash launch/tpu_vm.sh setup  --name=N --zone=Z [--extras=E]
#   bash launch/tpu_vm.sh run    --name=N --zone=Z [--entry=E] [--config=C] [--workdir=gs://…] \
#     [-- --config.a.b=v …]
#   bash launch/tpu_vm.sh log | status | stop --name=N --zone=Z
#   bash launch/tpu_vm.sh delete --name=N --zone=Z [--queued]
#
# `create` requests the TPU now and fails if none is free; `queue` requests it for when one becomes
# free, and `status` shows the state of that request, of the machine and of the run. `setup` copies
# this checkout, including changes that aren't committed, to tp_jax/ on every worker and installs
# it there. `run` starts the program in the background on every worker, `log` follows its log, and
# `stop` sends SIGTERM, which makes training save a checkpoint and end.
#   --accelerator-type   v4-32, v5litepod-16, v5p-128, v6e-64, …
#   --runtime-version    the image of the TPU VM; by default the one for the accelerator type
#   --spot               cheaper, but can be preempted at any time: see launch/babysit.sh
#   --queued             also delete the request that `queue` made
#   --entry              what to run: main (the default: training, which needs --config and
#                        --workdir), prepare, sample, evaluate, …
#   --extras             more optional dependencies to install: text,convert
#   --project            the Google Cloud project; by default gcloud's own
#   --dry-run            print the commands instead of running them
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

action="${1:-}"
[ $# -eq 0 ] || shift
answer_help "$action"
case "$action" in
  create | queue | setup | run | log | status | stop | delete) ;;
  *) fail_on_action "$action" "create, queue, setup, run, log, status, stop or delete" ;;
esac

name='' zone='' project='' accelerator_type='' runtime_version='' spot='' queued=''
entry='' config='' workdir='' extras=''
parse_arguments "name zone project accelerator-type runtime-version spot! queued! config workdir \
entry extras" "$@"
need name zone
place=("--zone=$zone")
[ -z "$project" ] || place+=("--project=$project")

# https://cloud.google.com/tpu/docs/runtimes
choose_runtime() {
  [ -z "$runtime_version" ] || return 0
  case "$accelerator_type" in
    v2-* | v3-* | v4-*) runtime_version=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    *) fail "--accelerator-type=$accelerator_type has no known image: give --runtime-version=…" ;;
  esac
}

create() {
  need accelerator-type
  choose_runtime
  local command=(gcloud compute tpus tpu-vm create "$name" "${place[@]}"
    "--accelerator-type=$accelerator_type" "--version=$runtime_version")
  [ -z "$spot" ] || command+=(--spot)
  run "${command[@]}"
}

queue() {
  need accelerator-type
  choose_runtime
  local command=(gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${place[@]}"
    "--accelerator-type=$accelerator_type" "--runtime-version=$runtime_version")
  [ -z "$spot" ] || command+=(--spot)
  run "${command[@]}"
}

# run_on WORKER COMMAND…  in the checkout there; WORKER is a number or "all"
run_on() {
  local worker="$1"
  shift
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$worker" \
    "--command=cd tp_jax && $(quoted "$@")"
}

setup() {
  local packed="${TMPDIR:-/tmp}/tp_jax-$name.tar.gz"
  local install=(bash tp_jax/launch/worker.sh setup)
  [ -z "$extras" ] || install+=("$extras")
  run tar -C "$root" --exclude=__pycache__ -czf "$packed" \
    setup.py README.md pyproject.toml tp_jax configs launch
  run gcloud compute tpus tpu-vm scp "$packed" "$name:tp_jax.tar.gz" "${place[@]}" --worker=all
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all \
    "--command=mkdir -p tp_jax && tar -xzf tp_jax.tar.gz -C tp_jax && $(quoted "${install[@]}")"
}

start() {
  choose_program
  run_on all bash launch/worker.sh start "${program[@]}"
}

status() {
  # There is no request if the TPU came from `create`.
  run gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    "--format=value(state.state)" || true
  run gcloud compute tpus tpu-vm describe "$name" "${place[@]}" "--format=value(state)" || return 1
  run_on 0 bash launch/worker.sh status
}

delete() {
  if [ -n "$queued" ]; then
    run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
  fi
}

case "$action" in
  run) start ;;
  log) run_on 0 tail -n 100 -F runs/worker/log ;;
  stop) run_on all bash launch/worker.sh stop ;;
  *) "$action" ;;
esac
