#!/usr/bin/env bash
# A TPU VM, or a pod of them: create, queue, set up, run on all workers, follow, delete.
#   bash launch/tpu_vm.sh create --name=N --zone=Z --accelerator-type=T [--spot]
#   bash launch/tpu_vm.sh queue  --name=N --zone=Z --accelerator-type=T [--spot]
#   bash launch/tpu_vm.sh setup  --name=N --zone=Z
#   bash launch/tpu_vm.sh run    --name=N --zone=Z --config=C --workdir=gs://… [-- --config.a.b=v …]
#   bash launch/tpu_vm.sh log | status | stop --name=N --zone=Z
#   bash launch/tpu_vm.sh delete --name=N --zone=Z [--queued]
#
# `create` asks for it now, `queue` for as soon as there is one: `status` says how that stands.
# `setup` copies this checkout, with what isn't committed, to tp_jax/ on every worker and installs
# it there. `run` goes on in the background; `stop` makes it save and end.
#   --accelerator-type   v4-32, v5litepod-16, v5p-128, v6e-64, …
#   --runtime-version    the image, if not the one for that type
#   --spot               cheaper, and may be taken away: see launch/babysit.sh
#   --queued             it came from `queue`, so the request goes with it
#   --project            instead of gcloud's default
#   --dry-run            prints the commands instead of running them
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

action="${1:-}"
[ $# -eq 0 ] || shift
case "$action" in
  create | queue | setup | run | log | status | stop | delete) ;;
  -h | --help)
    usage
    exit 0
    ;;
  *) fail "give create, queue, setup, run, log, status, stop or delete; --help says more" ;;
esac

name='' zone='' project='' accelerator_type='' runtime_version='' spot='' queued='' config='' workdir=''
parse_arguments "name zone project accelerator-type runtime-version spot! queued! config workdir" "$@"
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
    *) fail "no image is known for --accelerator-type=$accelerator_type: give --runtime-version=…" ;;
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

# on WORKER COMMAND…, from the checkout there.
on() {
  local worker="$1"
  shift
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$worker" \
    "--command=cd tp_jax && $(quoted "$@")"
}

setup() {
  local packed="${TMPDIR:-/tmp}/tp_jax-$name.tar.gz"
  run tar -C "$root" --exclude=__pycache__ -czf "$packed" \
    setup.py README.md pyproject.toml tp_jax configs launch
  run gcloud compute tpus tpu-vm scp "$packed" "$name:tp_jax.tar.gz" "${place[@]}" --worker=all
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all \
    "--command=mkdir -p tp_jax && tar -xzf tp_jax.tar.gz -C tp_jax && bash tp_jax/launch/worker.sh setup"
}

start() {
  need config workdir
  local command=(bash launch/worker.sh start "--config=$config" "--workdir=$workdir")
  [ "${#flags[@]}" -eq 0 ] || command+=("${flags[@]}")
  on all "${command[@]}"
}

# Of the request, if there is one, of the machine, and of the run.
status() {
  run gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    "--format=value(state.state)" || true
  run gcloud compute tpus tpu-vm describe "$name" "${place[@]}" "--format=value(state)" || return 1
  on 0 bash launch/worker.sh status
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
  log) on 0 tail -n 100 -F runs/worker/log ;;
  stop) on all bash launch/worker.sh stop ;;
  *) "$action" ;;
esac
