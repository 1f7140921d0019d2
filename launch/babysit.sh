#!/usr/bin/env bash
# Spot TPUs until the run is done: queues one, sets it up, runs, and begins again when it is taken.
#   bash launch/babysit.sh --name=N --zone=Z --accelerator-type=T --config=C --workdir=gs://… \
#     [-- --config.a.b=v …]
#
# Every POLL seconds it asks how things stand and does the next step, so it can itself be stopped
# and started again:
#   no request                          queue one
#   request waiting or being prepared   wait
#   request or machine gone             delete what is left, queue another
#   machine ready, nothing run on it    set up and run
#   … the run is done                   delete the machine, exit 0
#   … it was stopped, or died           run it again: the same command in the same workdir goes on
#   … it ended with exit code 2         exit 2, as a wrong flag isn't mended by trying again
# "Done" is exit code 0 after the program's last line, which begins with "done:".
#   --restarts          deaths on a ready machine, over all, after which it gives up (20)
#   --poll              seconds between looks (60)
#   --on-demand         not spot
#   --keep              leaves the machine when the run is done
#   --runtime-version, --project, --dry-run   as in launch/tpu_vm.sh
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
# shellcheck source=launch/common.sh
. "$here/common.sh"

name='' zone='' project='' accelerator_type='' runtime_version='' config='' workdir=''
on_demand='' keep='' poll=60 restarts=20
parse_arguments "name zone project accelerator-type runtime-version config workdir on-demand! keep! \
poll restarts" "$@"
need name zone accelerator-type config workdir
case "$workdir" in
  gs://?*) ;;
  *) fail "--workdir=$workdir goes away with the machine: give --workdir=gs://…" ;;
esac
case "$poll$restarts" in
  *[!0-9]*) fail "--poll=$poll --restarts=$restarts: give whole numbers" ;;
esac

place=("--zone=$zone")
[ -z "$project" ] || place+=("--project=$project")
kind=("--accelerator-type=$accelerator_type")
[ -z "$runtime_version" ] || kind+=("--runtime-version=$runtime_version")
[ -n "$on_demand" ] || kind+=(--spot)
training=("--config=$config" "--workdir=$workdir")
[ "${#flags[@]}" -eq 0 ] || training+=(-- "${flags[@]}")

# tpu_vm ACTION OPTIONS…
tpu_vm() {
  local command=(bash "$here/tpu_vm.sh" "$1" "--name=$name" "${place[@]}")
  [ -z "$dry_run" ] || command+=(--dry-run)
  "${command[@]}" "${@:2}"
}

# The state of `queued-resources` or `tpu-vm`: none if there is none, unknown if gcloud can't say.
state_of() {
  local field=state
  [ "$1" = tpu-vm ] || field=state.state
  local command=(gcloud compute tpus "$1" describe "$name" "${place[@]}" "--format=value($field)")
  if [ -n "$dry_run" ]; then
    run "${command[@]}"
  elif "${command[@]}" 2> "$errors"; then
    :
  elif grep -qE 'NOT_FOUND|not found' "$errors"; then
    echo none
  else
    echo unknown
  fi
}

# What worker.sh says on the first worker, which is the one that says "done:".
state_of_run() {
  local command=(gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=0
    "--command=if [ -e tp_jax/launch/worker.sh ]; then bash tp_jax/launch/worker.sh status; else echo none; fi")
  if [ -n "$dry_run" ]; then
    run "${command[@]}"
  else
    "${command[@]}" 2> /dev/null | tail -n 1
  fi
}

say() { echo "$(date '+%F %T') $*" >&2; }

begin_again() {
  say "$1: another one"
  tpu_vm delete --queued || say "couldn't delete it yet"
}

# What goes wrong on a machine that is there, and would go wrong again without end.
died() {
  say "$1"
  deaths=$((deaths + 1))
  if [ "$deaths" -gt "$restarts" ]; then
    echo "error: it ended $deaths times; tpu_vm.sh log says why" >&2
    exit 1
  fi
}

if [ -n "$dry_run" ]; then
  state_of queued-resources
  tpu_vm queue "${kind[@]}"
  state_of tpu-vm
  state_of_run
  tpu_vm setup
  tpu_vm run "${training[@]}"
  tpu_vm stop
  tpu_vm delete --queued
  exit 0
fi

deaths=0
errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT
while :; do
  request="$(state_of queued-resources)"
  case "$request" in
    none) tpu_vm queue "${kind[@]}" || say "couldn't queue it yet" ;;
    SUSPENDED | FAILED) begin_again "the request is $request" ;;
    ACTIVE)
      machine="$(state_of tpu-vm)"
      case "$machine" in
        READY)
          progress="$(state_of_run || true)"
          case "$progress" in
            running) ;;
            done)
              say "the run is done: $workdir"
              [ -n "$keep" ] || tpu_vm delete --queued
              exit 0
              ;;
            none)
              { tpu_vm setup && tpu_vm run "${training[@]}"; } || died "it couldn't be set up"
              ;;
            'failed 2 '*) fail "the run ended with exit code 2: ${progress#failed 2 }" ;;
            stopped | lost | failed*)
              died "the run ended before it was done ($progress)"
              # Of a run that lost one process, the others end first.
              { tpu_vm stop && tpu_vm run "${training[@]}"; } || say "couldn't run it again yet"
              ;;
            *) say "the worker doesn't answer" ;;
          esac
          ;;
        none | PREEMPTED | TERMINATED | STOPPED) begin_again "the machine is $machine" ;;
        *) say "the machine is $machine" ;;
      esac
      ;;
    *) say "the request is $request" ;;
  esac
  sleep "$poll"
done
