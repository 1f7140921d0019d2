#!/usr/bin/env bash
# Makes .venv, installs, runs the tests.
#   bash launch/test.sh [pytest arguments]      (-m slow: the longer checks alone)
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

use_environment train,test
# Two workers, each with whole files, so that what a file's tests share is made once.
.venv/bin/python -m pytest --numprocesses=2 --dist=loadfile "$@"
