#!/usr/bin/env bash
# From a fresh clone to pictures: makes .venv, installs, trains on real digits, samples.
#   bash launch/quickstart.sh [--config.a.b=v …]
# WORKDIR chooses where (runs/quickstart); a run that was stopped goes on there.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

workdir="${WORKDIR:-runs/quickstart}"
use_environment train
echo "1/2 training a DiT that thinks in blocks 1 and 2 (about two minutes on two CPU cores)"
.venv/bin/python -m tp_jax.main --config=configs/quickstart.py --workdir="$workdir" "$@"
echo "2/2 sampling ten of each digit"
.venv/bin/python -m tp_jax.sample --workdir="$workdir" --out="$workdir/pictures" --num=100
echo "look at $workdir/pictures/grid.png and, from while it learned, $workdir/samples/"
echo "curves: .venv/bin/tensorboard --logdir=$workdir"
