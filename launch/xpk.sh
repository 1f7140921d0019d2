#!/usr/bin/env bash
# Run tp_jax on TPU slices of a GKE cluster, with xpk (https://github.com/AI-Hypercomputer/xpk).
#   bash launch/xpk.sh create --cluster=K --workload=W --tpu-type=T --docker-image=I \
#     [--entry=E] [--config=C] [--workdir=gs://…] [--num-slices=N] [-- --config.a.b=v …]
#   bash launch/xpk.sh delete --cluster=K --workload=W
#
# Build the image from launch/Dockerfile.tpu. If a node is preempted or a process dies, GKE starts
# the pods again with the same command in the same workdir; after exit code 2 (a wrong flag or a
# missing file) it doesn't.
#   --tpu-type            v5litepod-16, v6e-64, …
#   --num-slices          number of slices, connected by the data-centre network (1)
#   --docker-image        the image to run, unchanged
#   --base-docker-image   instead: xpk adds this checkout to that image, pushes the result, runs it
#   --entry               what to run: main (the default: training, which needs --config and
#                         --workdir), prepare, sample, evaluate, …
#   --max-restarts        how many times the pods may start again (100)
#   --zone, --project     by default gcloud's own
#   --dry-run             print the command instead of running it
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

action="${1:-}"
[ $# -eq 0 ] || shift
cluster='' workload='' tpu_type='' docker_image='' base_docker_image='' entry='' config=''
workdir='' zone='' project='' num_slices=1 max_restarts=100
answer_help "$action"
case "$action" in
  create) names="cluster workload tpu-type num-slices docker-image base-docker-image max-restarts \
entry config workdir zone project" ;;
  delete) names="cluster workload zone project" ;;
  *) fail_on_action "$action" "create or delete" ;;
esac
parse_arguments "$names" "$@"
need cluster workload
command=(xpk workload "$action" "--cluster=$cluster" "--workload=$workload")
[ -z "$zone" ] || command+=("--zone=$zone")
[ -z "$project" ] || command+=("--project=$project")

if [ "$action" = create ]; then
  need tpu-type
  choose_program
  case "$docker_image,$base_docker_image" in
    ,) fail "--docker-image is missing: give --docker-image=… or --base-docker-image=…" ;;
    ,*) image=("--base-docker-image=$base_docker_image" "--script-dir=$root") ;;
    *,) image=("--docker-image=$docker_image") ;;
    *) fail "--docker-image and --base-docker-image exclude each other: give one of them" ;;
  esac
  case "$workdir" in
    '' | gs://?* | /*) ;;
    *) fail "--workdir=$workdir would be deleted with the pod: give gs://… or a mounted folder" ;;
  esac
  # Kubernetes takes exit code 0 for finished, but a preempted run saves and ends with 0. `once`
  # turns that into 42. Exit code 1 is what the other processes return when one process dies. xpk
  # itself adds 42 and 127 to 255 to the codes after which the pods start again.
  container=(exec bash launch/worker.sh once "${program[@]}")
  case "${container[*]}" in
    *$'\n'*) fail "xpk can't pass on a line break in a flag: give the flag without it" ;;
  esac
  command+=("--tpu-type=$tpu_type" "--num-slices=$num_slices" "${image[@]}"
    "--max-restarts=$max_restarts" --restart-on-exit-codes=1
    "--command=$(quoted "${container[@]}")")
fi
run "${command[@]}"
