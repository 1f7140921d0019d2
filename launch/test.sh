#!/usr/bin/env bash
# Run the tests: create .venv, install the package with its test tools, and start pytest.
#   bash launch/test.sh [pytest arguments]
#   bash launch/test.sh tests/test_models.py     run one file
#   bash launch/test.sh -m slow                  run only the longer checks
#   bash launch/test.sh --python=3.13 --jax=0.10 [pytest arguments]
#     with this Python and the newest version of this release of jax, in .venv-3.13-0.10; the other
#     packages are then the newest that setup.py allows
# The first run downloads about 2 GB; the tests take about 12 minutes on two CPU cores. Environment
# variables, such as PYTHON and TP_JAX_NEWEST, are described in launch/environment.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
script=launch/test.sh
# shellcheck source=launch/common.sh
. launch/common.sh
# shellcheck source=launch/environment.sh
. launch/environment.sh

answer_help "${1:-}"
while [ $# -gt 0 ]; do
  case "$1" in
    --python=*)
      PYTHON="python${1#--python=}"
      "$PYTHON" --version > /dev/null 2>&1 || fail "$1: $PYTHON doesn't run: install it"
      ;;
    --jax=*)
      TP_JAX_JAX="${1#--jax=}"
      [[ "$TP_JAX_JAX" =~ ^[0-9]+\.[0-9]+$ ]] || fail "$1: give a release, such as --jax=0.10"
      ;;
    *) break ;;
  esac
  TP_JAX_VENV="${TP_JAX_VENV:-.venv}-${1#--*=}"
  shift
done
use_environment train,test
# Keep the bytecode of modules, also where the environment forbids it: tests start many processes,
# and each would compile all modules again. It is kept out of the source tree.
unset PYTHONDONTWRITEBYTECODE
PYTHONPYCACHEPREFIX="$(cd "$venv" && pwd)/bytecode"
export PYTHONPYCACHEPREFIX
# Two workers. Each begins with half of the files; the one that ends first takes over tests of the
# other. Few files are split, so that the fixtures of most files are created once.
"$venv/bin/python" -m pytest --numprocesses=2 --dist=worksteal "$@"
