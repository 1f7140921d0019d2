#!/usr/bin/env bash
# What happens on each machine of a job; the other scripts call it there.
#   bash launch/worker.sh setup          makes .venv, for the accelerator that the machine has
#   bash launch/worker.sh start FLAGS…   python -m tp_jax.main FLAGS… in the background
#   bash launch/worker.sh status         one line: running, done, stopped, failed CODE …, lost or none
#   bash launch/worker.sh stop           SIGTERM, which saves; SIGKILL after STOP_SECONDS (300)
#   bash launch/worker.sh once FLAGS…    in the foreground; exit code 42 if SIGTERM stopped it
#
# A run is done when it ends with exit code 0 after a line that begins with "done:". Exit code 0
# without it is a run that SIGTERM stopped, and that the same command goes on with. `status` asks
# the first machine, since that alone says things. The background run keeps its log, process id and
# exit code in runs/worker, and a lock for as long as it lives.
set -euo pipefail
cd "$(dirname "$0")/.."
script=launch/worker.sh
# shellcheck source=launch/common.sh
. launch/common.sh
# shellcheck source=launch/environment.sh
. launch/environment.sh

kept=runs/worker
python=python
[ ! -x .venv/bin/python ] || python=.venv/bin/python

is_running() {
  [ -e "$kept/lock" ] && ! flock --nonblock "$kept/lock" true
}

setup() {
  if [ -z "${TP_JAX_EXTRAS:-}" ]; then
    if command -v nvidia-smi > /dev/null; then
      TP_JAX_EXTRAS=cuda
    elif compgen -G '/dev/accel*' > /dev/null || compgen -G '/dev/vfio/[0-9]*' > /dev/null; then
      TP_JAX_EXTRAS=tpu
    fi
  fi
  # The images of TPU VMs have an older Python.
  if [ -z "${PYTHON:-}" ]; then
    PATH="$HOME/.local/bin:$PATH"
    command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    uv python install --quiet 3.12
    PYTHON="$(uv python find 3.12)"
  fi
  use_environment train
}

start() {
  ! is_running || fail "a run is going on here already: tpu_vm.sh stop ends it"
  mkdir -p "$kept"
  rm -f "$kept/exit_code" "$kept/pid"
  [ ! -e "$kept/log" ] || mv "$kept/log" "$kept/log.before"
  # To wait: who asks whether a run is going on has the lock for a moment, too.
  # The trap: on SIGTERM to all of the group, the program ends first and its exit code is kept.
  # shellcheck disable=SC2016
  nohup setsid flock --wait 10 "$kept/lock" bash -c '
    trap : TERM; kept=$1; shift; echo $$ > "$kept/pid"
    "$@" > "$kept/log" 2>&1; echo $? > "$kept/exit_code"' \
    worker "$kept" "$python" -m tp_jax.main "$@" > /dev/null 2>&1 < /dev/null &
  local left=150
  until [ -s "$kept/pid" ]; do
    [ "$left" -gt 0 ] || fail "the run didn't start on $(hostname): see $PWD/$kept/log"
    sleep 0.1
    left=$((left - 1))
  done
  echo "started on $(hostname)"
}

status() {
  if is_running; then
    echo running
  elif [ ! -e "$kept/lock" ]; then
    echo none
  elif [ ! -e "$kept/exit_code" ]; then
    echo lost
  elif [ "$(cat "$kept/exit_code")" != 0 ]; then
    echo "failed $(cat "$kept/exit_code") $(tail -n 1 "$kept/log")"
  elif grep -q '^done:' "$kept/log"; then
    echo "done"
  else
    echo stopped
  fi
}

signal_run() {
  # setsid made it the leader of its group or, where that had to fork, a member.
  kill "-$1" -- "-$(ps -o pgid= -p "$(cat "$kept/pid")" | tr -d ' ')" 2> /dev/null || true
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
  local code=0 stopping='' child
  "$python" -m tp_jax.main "$@" &
  child=$!
  trap 'stopping=1; kill -TERM $child 2> /dev/null || true' TERM
  # A signal ends a wait, not the child.
  while [ -n "$(jobs -r)" ]; do wait "$child" || true; done
  wait "$child" || code=$?
  if [ "$code" = 0 ] && [ -n "$stopping" ]; then code=42; fi
  exit "$code"
}

action="${1:-}"
[ $# -eq 0 ] || shift
case "$action" in
  setup | start | status | stop | once) "$action" "$@" ;;
  -h | --help) usage ;;
  *) fail "give setup, start, status, stop or once; --help says more" ;;
esac
