#!/usr/bin/env bash
# TPU slices of a GKE cluster, through xpk (https://github.com/AI-Hypercomputer/xpk).
#   bash launch/xpk.sh create --cluster=K --workload=W --tpu-type=T --docker-image=I \
#     --config=C --workdir=gs://… [--num-slices=N] [-- --config.a.b=v …]
#   bash launch/xpk.sh delete --cluster=K --workload=W
#
# The image is one of launch/Dockerfile.tpu. GKE starts the pods again, in the same workdir, when
# a node is taken away or a process dies, but not after exit code 2 (a wrong flag).
#   --tpu-type            v5litepod-16, v6e-64, …
#   --num-slices          slices, joined over the data-centre network (1)
#   --docker-image        pulled as it is
#   --base-docker-image   instead: xpk puts this checkout on top of it and pushes that
#   --max-restarts        how often the pods start again (100)
#   --zone, --project     instead of gcloud's defaults
#   --dry-run             prints the command instead of running it
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

action="${1:-}"
[ $# -eq 0 ] || shift
cluster='' workload='' tpu_type='' docker_image='' base_docker_image='' config='' workdir=''
zone='' project='' num_slices=1 max_restarts=100
case "$action" in
  create) names="cluster workload tpu-type num-slices docker-image base-docker-image max-restarts \
config workdir zone project" ;;
  delete) names="cluster workload zone project" ;;
  -h | --help)
    usage
    exit 0
    ;;
  *) fail "give create or delete; --help says more" ;;
esac
parse_arguments "$names" "$@"
need cluster workload
command=(xpk workload "$action" "--cluster=$cluster" "--workload=$workload")
[ -z "$zone" ] || command+=("--zone=$zone")
[ -z "$project" ] || command+=("--project=$project")

if [ "$action" = create ]; then
  need tpu-type config workdir
  case "$docker_image,$base_docker_image" in
    ,) fail "--docker-image is missing: give --docker-image=… or --base-docker-image=…" ;;
    ,*) image=("--base-docker-image=$base_docker_image" "--script-dir=$root") ;;
    *,) image=("--docker-image=$docker_image") ;;
    *) fail "--docker-image and --base-docker-image were given: give one of them" ;;
  esac
  case "$workdir" in
    gs://?* | /*) ;;
    *) fail "--workdir=$workdir goes away with the pod: give gs://…, or a mounted folder" ;;
  esac
  # `worker.sh once` and not the program itself: a pod that saves and exits 0 when its node is taken
  # away counts as finished. Code 1 is a lost peer; xpk's own codes (42, 127 to 255) are added.
  training=(exec bash launch/worker.sh once "--config=$config" "--workdir=$workdir")
  [ "${#flags[@]}" -eq 0 ] || training+=("${flags[@]}")
  case "${training[*]}" in
    *$'\n'*) fail "xpk can't pass on a line break in a flag: give the flag without it" ;;
  esac
  command+=("--tpu-type=$tpu_type" "--num-slices=$num_slices" "${image[@]}"
    "--max-restarts=$max_restarts" --restart-on-exit-codes=1 "--command=$(quoted "${training[@]}")")
fi
run "${command[@]}"
