#!/usr/bin/env bash
# Trains and scores Shapes: the base, plain LoRA and recursive sparse thinking on it, from SEEDS.
#   [SEEDS="0 1 2"] bash launch/shapes.sh ROOT [--config.a.b=v …]
# Writes ROOT/VARIANT/SEED/…, and ROOT/shapes.json and ROOT/shapes.md with mean and spread. What is
# trained or scored already stays, so that a killed one goes on; options go to all trainings.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

root="${1:?name a folder: bash launch/shapes.sh ROOT}"
shift
use_environment train
for seed in ${SEEDS:-0 1 2}; do
  for variant in base lora think; do
    workdir="$root/$variant/$seed"
    config=configs/shapes.py
    base=()
    if [ "$variant" != base ]; then
      config="$config:$variant"
      base=(--config.init.base="$root/base/$seed/run")
    fi
    .venv/bin/python -m tp_jax.main --config="$config" --workdir="$workdir/run" \
      --config.seed="$seed" "${base[@]}" "$@"
    if [ ! -e "$workdir/scores.json" ]; then
      .venv/bin/python -m tp_jax.evaluate --suite=shapes --workdir="$workdir/run" --out="$workdir"
    fi
  done
done
.venv/bin/python -m tp_jax.evaluate --suite=shapes --collect="$root" --out="$root/shapes.json"
