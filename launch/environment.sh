# Sourced by the other scripts: makes .venv with what is needed, once.
#   use_environment EXTRA[,EXTRA…]
# PYTHON chooses the interpreter (3.11 or newer); TP_JAX_EXTRAS adds extras, as cuda or tpu.
# shellcheck shell=bash

use_environment() {
  local extras="$1${TP_JAX_EXTRAS:+,$TP_JAX_EXTRAS}"
  local python="${PYTHON:-python3}"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $("$python" --version) is too old: set PYTHON to Python 3.11 or newer" >&2
    exit 2
  fi
  if [ ! -x .venv/bin/python ]; then
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
  fi
  # What was installed, so that a second run needs no network.
  local wanted
  wanted="$extras $(cksum < setup.py)"
  touch .venv/installed
  if ! grep -qxF "$wanted" .venv/installed; then
    echo "installing tp_jax[$extras] into .venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
    .venv/bin/python -m uv pip install --quiet --python .venv/bin/python --editable ".[$extras]"
    echo "$wanted" >> .venv/installed
  fi
}
