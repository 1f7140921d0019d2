#!/usr/bin/env bash
# Run tp_jax on one machine of a job. The other scripts call this one on each machine.
#   bash launch/worker.sh setup [EXTRAS]         make .venv, for the accelerator of this machine
#   bash launch/worker.sh start [ENTRY] FLAGS…   run python -m tp_jax.ENTRY FLAGS… in the background
#   bash launch/worker.sh once [ENTRY] FLAGS…    run it in the foreground; exit code 42 if SIGTERM
#                                                stopped it
#   bash launch/worker.sh status                 print one line about the background run
#   bash launch/worker.sh stop                   send it SIGTERM; SIGKILL after STOP_SECONDS (300)
#
# ENTRY is main (the default: training), prepare, sample, evaluate or another entry of tp_jax.
# EXTRAS are names of optional dependencies in setup.py, separated by commas: text,convert.
#
# The status is one of
#   none          nothing has been started here
#   running
#   done          it finished
#   stopped       SIGTERM stopped it; the same command resumes
#   failed CODE   it ended with this exit code; the last line of its log follows
#   lost          it ended without an exit code: it was killed, or the machine restarted
# Training that SIGTERM stops saves a checkpoint and ends with exit code 0, so training counts as
# done only if its log also has a line that begins with "done:". Only process 0 writes that line:
# ask the first machine. The log, the process id and the exit code are in runs/worker, and the run
# holds the lock there until it ends.
set -euo pipefail
cd "$(dirname "$0")/.."
script=launch/worker.sh
# shellcheck source=launch/common.sh
. launch/common.sh
# shellcheck source=launch/environment.sh
. launch/environment.sh

folder=runs/worker
python=python
[ ! -x .venv/bin/python ] || python=.venv/bin/python

is_running() {
  [ -e "$folder/lock" ] && ! flock --nonblock "$folder/lock" true
}

setup() {
  if [ -z "${TP_JAX_EXTRAS:-}" ]; then
    if command -v nvidia-smi > /dev/null; then
      TP_JAX_EXTRAS=cuda
    elif compgen -G '/dev/accel*' > /dev/null || compgen -G '/dev/vfio/[0-9]*' > /dev/null; then
      TP_JAX_EXTRAS=tpu
    fi
  fi
  # The Python of the TPU VM images is too old, so install one with uv.
  if [ -z "${PYTHON:-}" ]; then
    PATH="$HOME/.local/bin:$PATH"
    command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    uv python install --quiet 3.12
    PYTHON="$(uv python find 3.12)"
  fi
  use_environment "train${1:+,$1}"
}

start() {
  ! is_running || fail "a run is already in progress here: end it with tpu_vm.sh stop"
  mkdir -p "$folder"
  rm -f "$folder/exit_code" "$folder/pid"
  [ ! -e "$folder/log" ] || mv "$folder/log" "$folder/log.before"
  echo "$entry" > "$folder/entry"
  # flock waits, because `status` holds the lock for a moment, too. The trap keeps the shell alive
  # when the whole process group gets SIGTERM, so that it can write the exit code.
  # shellcheck disable=SC2016
  nohup setsid flock --wait 10 "$folder/lock" bash -c '
    trap : TERM; folder=$1; shift; echo $$ > "$folder/pid"
    "$@" > "$folder/log" 2>&1; echo $? > "$folder/exit_code"' \
    worker "$folder" "$python" -m "tp_jax.$entry" "$@" > /dev/null 2>&1 < /dev/null &
  local left=150
  until [ -s "$folder/pid" ]; do
    [ "$left" -gt 0 ] || fail "the run didn't start on $(hostname): see $PWD/$folder/log"
    sleep 0.1
    left=$((left - 1))
  done
  echo "started on $(hostname)"
}

status() {
  local code
  if is_running; then
    echo running
  elif [ ! -e "$folder/lock" ]; then
    echo none
  elif [ ! -e "$folder/exit_code" ]; then
    echo lost
  else
    code="$(cat "$folder/exit_code")"
    case "$code" in
      0) if is_finished; then echo "done"; else echo stopped; fi ;;
      # 128 + SIGTERM: it ended before it could handle the signal, or it doesn't handle it.
      143) echo stopped ;;
      *) echo "failed $code $(tail -n 1 "$folder/log")" ;;
    esac
  fi
}

# For a run with exit code 0.
is_finished() {
  [ "$(cat "$folder/entry")" != main ] || grep -q '^done:' "$folder/log"
}

signal_run() {
  # The run is the leader of its process group or, where setsid had to fork, a member of it.
  kill "-$1" -- "-$(ps -o pgid= -p "$(cat "$folder/pid")" | tr -d ' ')" 2> /dev/null || true
}

stop() {
  local left="${STOP_SECONDS:-300}"
  if is_running; then signal_run TERM; fi
  while is_running && [ "$left" -gt 0 ]; do
    sleep 1
    left=$((left - 1))
  done
  if is_running; then signal_run KILL; fi
}

once() {
  local code=0 stopping='' interrupted='' child
  "$python" -m "tp_jax.$entry" "$@" &
  child=$!
  trap 'stopping=1; kill -TERM $child 2> /dev/null || true' TERM
  # bash starts a command in the background with SIGINT ignored.
  trap 'interrupted=130; kill -TERM $child 2> /dev/null || true' INT
  trap 'interrupted=129; kill -TERM $child 2> /dev/null || true' HUP
  # A signal to this shell ends `wait`, but not the child.
  while [ -n "$(jobs -r)" ]; do wait "$child" || true; done
  wait "$child" || code=$?
  # After SIGTERM, training ends with 0; an entry that doesn't handle the signal with 128 + 15.
  if [ -n "$stopping" ]; then
    case "$code" in 0 | 143) code=42 ;; esac
  fi
  exit "${interrupted:-$code}"
}

action="${1:-}"
[ $# -eq 0 ] || shift
case "$action ${1:-}" in
  -h* | --help* | *' -h' | *' --help')
    usage
    exit 0
    ;;
esac
case "$action" in
  setup | status | stop) "$action" "$@" ;;
  start | once)
    entry=main
    case "${1:-}" in
      '' | -*) ;;
      *)
        entry="$1"
        shift
        ;;
    esac
    "$action" "$@"
    ;;
  *) fail_on_action "$action" "setup, start, once, status or stop" ;;
esac
