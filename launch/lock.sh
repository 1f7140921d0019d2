#!/usr/bin/env bash
# Write launch/requirements.lock: the newest versions that setup.py allows, with hashes, of all its
# extras, for every platform and for Python 3.11 and newer.
#   bash launch/lock.sh     (it takes no arguments)
set -euo pipefail
cd "$(dirname "$0")/.."
script=launch/lock.sh
# shellcheck source=launch/common.sh
. launch/common.sh
# shellcheck source=launch/environment.sh
. launch/environment.sh

answer_help "${1:-}"
[ $# -eq 0 ] || fail "unexpected argument $(quoted "$1"); see --help"
use_environment train,test
lock=launch/requirements.lock
# uv installs the packages, and setuptools builds this one.
printf 'uv\nsetuptools\n' | .venv/bin/python -m uv pip compile --quiet --upgrade \
  --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
  --no-annotate --all-extras setup.py - --output-file "$lock"
echo "wrote $lock: $(grep -c '==' "$lock") packages"
