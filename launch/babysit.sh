#!/usr/bin/env bash
# Run tp_jax on a spot TPU until it is done: request a TPU, set it up and start the run, and request
# another one whenever the TPU is preempted.
#   bash launch/babysit.sh --name=N --zone=Z --accelerator-type=T [--entry=E] [--config=C] \
#     [--workdir=gs://…] [-- --config.a.b=v …]
#
# Every --poll seconds the script asks Google Cloud for the state of the request and of the machine,
# and the first worker for the state of the run. It keeps no state of its own except the number of
# failures, so it can be stopped and started again at any time. What it does next:
#   there is no request                      request a TPU
#   the request is waiting or provisioning   wait
#   the request failed or was suspended      delete it and request another TPU
#   the machine was preempted                delete it and request another TPU
#   the machine is ready                     set it up and start the run
#   the run is done                          delete the machine and exit with code 0
#   the run was stopped or failed            start it again; the same command resumes
#   the run ended with exit code 2           exit with code 2: a wrong flag stays wrong
# launch/worker.sh explains the states of a run.
#   --restarts   exit with code 1 after more than this many failures on a ready machine (20)
#   --poll       seconds between two checks (60)
#   --on-demand  request an on-demand TPU instead of a spot TPU
#   --keep       keep the machine when the run is done
#   --entry, --extras, --runtime-version, --project, --dry-run   as for launch/tpu_vm.sh
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
# shellcheck source=launch/common.sh
. "$here/common.sh"

name='' zone='' project='' accelerator_type='' runtime_version='' config='' workdir=''
entry='' extras='' on_demand='' keep='' poll=60 restarts=20
parse_arguments "name zone project accelerator-type runtime-version entry extras config workdir \
on-demand! keep! poll restarts" "$@"
need name zone accelerator-type
choose_program
case "$workdir" in
  '' | gs://?*) ;;
  *) fail "--workdir=$workdir would be deleted with the machine: give --workdir=gs://…" ;;
esac
case "$poll$restarts" in
  *[!0-9]*) fail "--poll=$poll --restarts=$restarts: give whole numbers" ;;
esac

place=("--zone=$zone")
[ -z "$project" ] || place+=("--project=$project")
hardware=("--accelerator-type=$accelerator_type")
[ -z "$runtime_version" ] || hardware+=("--runtime-version=$runtime_version")
[ -n "$on_demand" ] || hardware+=(--spot)
program_options=("--entry=$entry")
[ -z "$config" ] || program_options+=("--config=$config")
[ -z "$workdir" ] || program_options+=("--workdir=$workdir")
[ "${#flags[@]}" -eq 0 ] || program_options+=(-- "${flags[@]}")

# tpu_vm ACTION OPTIONS…
tpu_vm() {
  local command=(bash "$here/tpu_vm.sh" "$1" "--name=$name" "${place[@]}")
  [ -z "$dry_run" ] || command+=(--dry-run)
  "${command[@]}" "${@:2}"
}

# state_of queued-resources | tpu-vm
# Print its state: none if it doesn't exist, unknown if gcloud fails in another way.
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

# The status that worker.sh prints on the first worker, whose log has the line "done:".
state_of_run() {
  local worker=tp_jax/launch/worker.sh
  local command=(gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=0
    "--command=if [ -e $worker ]; then bash $worker status; else echo none; fi")
  if [ -n "$dry_run" ]; then
    run "${command[@]}"
  else
    "${command[@]}" 2> /dev/null | tail -n 1
  fi
}

set_up() {
  tpu_vm setup ${extras:+"--extras=$extras"}
}

start_run() {
  tpu_vm run "${program_options[@]}"
}

log() { echo "$(date '+%F %T') $*" >&2; }

replace() {
  log "$1: requesting another TPU"
  tpu_vm delete --queued || log "deleting the old one failed; trying again"
}

# Count failures on a ready machine: without a limit, a bug would keep the TPU busy forever.
count_failure() {
  log "$1"
  failures=$((failures + 1))
  if [ "$failures" -gt "$restarts" ]; then
    echo "error: the run failed $failures times: find the cause with tpu_vm.sh log" >&2
    exit 1
  fi
}

if [ -n "$dry_run" ]; then
  state_of queued-resources
  tpu_vm queue "${hardware[@]}"
  state_of tpu-vm
  state_of_run
  set_up
  start_run
  tpu_vm stop
  tpu_vm delete --queued
  exit 0
fi

failures=0
errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT
trap 'log "interrupted: the TPU goes on; the same command watches it again"; exit 130' INT
while :; do
  request="$(state_of queued-resources)"
  case "$request" in
    none) tpu_vm queue "${hardware[@]}" || log "requesting a TPU failed; trying again" ;;
    SUSPENDED | FAILED) replace "the request is $request" ;;
    ACTIVE)
      machine="$(state_of tpu-vm)"
      case "$machine" in
        READY)
          progress="$(state_of_run || true)"
          case "$progress" in
            running) ;;
            done)
              log "the run is done${workdir:+: $workdir}"
              [ -n "$keep" ] || tpu_vm delete --queued
              exit 0
              ;;
            none)
              { set_up && start_run; } || count_failure "setting up the machine failed"
              ;;
            'failed 2 '*) fail "the run ended with exit code 2: ${progress#failed 2 }" ;;
            stopped | lost | failed*)
              count_failure "the run ended before it was done ($progress)"
              # If only one process died, the others may still be running.
              { tpu_vm stop && start_run; } || log "starting the run failed; trying again"
              ;;
            *) log "the first worker doesn't answer" ;;
          esac
          ;;
        none | PREEMPTED | TERMINATED | STOPPED) replace "the machine is $machine" ;;
        *) log "the machine is $machine" ;;
      esac
      ;;
    *) log "the request is $request" ;;
  esac
  sleep "$poll"
done
