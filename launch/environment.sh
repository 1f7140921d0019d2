# Functions for the other scripts in this folder, which source this file: a virtual environment.
#   use_environment EXTRA[,EXTRA…]   create .venv and install the package with these extras into it;
#                                    sets `venv` to its folder
#
# Packages are installed in the versions of launch/requirements.lock, and their hashes are checked.
# Environment variables:
#   PYTHON           the interpreter, 3.11 or newer; python3 by default
#   TP_JAX_EXTRAS    further extras, such as cuda or tpu
#   TP_JAX_NEWEST=1  install the newest versions that setup.py allows, instead of the locked ones
#   TP_JAX_JAX       a release of jax, such as 0.10: install its newest version, and the newest ones
#                    of all other packages
#   TP_JAX_VENV      the folder, instead of .venv; only test.sh takes another one
# shellcheck shell=bash

use_environment() {
  local extras="$1${TP_JAX_EXTRAS:+,$TP_JAX_EXTRAS}"
  local python="${PYTHON:-python3}" lock=launch/requirements.lock versions=locked
  venv="${TP_JAX_VENV:-.venv}"
  local install=("$venv/bin/python" -m uv pip install --quiet --python "$venv/bin/python")
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $("$python" --version) is too old: set PYTHON to Python 3.11 or newer" >&2
    exit 2
  fi
  if [ ! -x "$venv/bin/python" ]; then
    echo "creating $venv with $("$python" --version)"
    "$python" -m venv "$venv"
  fi
  if [ -n "${TP_JAX_JAX:-}" ]; then
    versions="newest, jax $TP_JAX_JAX"
    install+=(--upgrade "jax==$TP_JAX_JAX.*" "jaxlib==$TP_JAX_JAX.*")
  elif [ -n "${TP_JAX_NEWEST:-}" ]; then
    versions=newest
    install+=(--upgrade)
  else
    install+=(--constraint "$lock" --build-constraint "$lock")
  fi
  # Remember what was installed, so that a second run needs no network.
  local wanted
  wanted="$versions $extras $(cat setup.py "$lock" | cksum)"
  touch "$venv/installed"
  if [ "$(tail -n 1 "$venv/installed")" != "$wanted" ]; then
    echo "installing tp_jax[$extras] into $venv ($versions versions)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(pinned uv "$lock")"
    "${install[@]}" --editable ".[$extras]"
    echo "$wanted" >> "$venv/installed"
  fi
}

# pinned NAME LOCK: the requirement NAME==VERSION of a package in the lock file
pinned() {
  sed -n "s/^\($1==[^ ]*\).*/\1/p" "$2"
}
