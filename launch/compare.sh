#!/usr/bin/env bash
# Trains and scores a config's variants from SEEDS, and writes their mean and spread.
#   [SEEDS="0 1 2"] bash launch/compare.sh shapes|frozenlake ROOT [--config.a.b=v …]
# shapes: the base, and on it plain LoRA and recursive sparse thinking. frozenlake: recursive
# sparse thinking, experts taken at random, and training of one move without recursion; the first two
# also (VARIANT-1) drawing one move at a time, as the last does.
# Writes ROOT/VARIANT/SEED/…, and ROOT/shapes.json (or frozenlake.json) with the same as a table
# beside it. What is trained or scored already stays, so that a killed one goes on; options go to
# all trainings.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

usage="bash launch/compare.sh shapes|frozenlake ROOT"
what="${1:?name what to compare: $usage}"
root="${2:?name a folder: $usage}"
shift 2
case "$what" in
  shapes) suite=shapes extras=train variants="base lora think" ;;
  frozenlake) suite=frozenlake extras=train,frozenlake variants="recursive random single" ;;
  *) echo "error: $what is neither shapes nor frozenlake: $usage" >&2; exit 2 ;;
esac
# They are what the variants differ in.
for option in "$@"; do
  case "$option" in
    --config.model.thinking*)
      echo "error: $option would make the variants alike: change configs/$what.py" >&2
      exit 2
      ;;
  esac
done
use_environment "$extras"

# score RUN OUT [flags …]: unless that was done since the run's last checkpoint.
score() {
  local run="$1" out="$2"
  shift 2
  if [ ! -e "$out/scores.json" ] || [ "$run/checkpoints" -nt "$out/scores.json" ]; then
    .venv/bin/python -m tp_jax.evaluate --suite="$suite" --workdir="$run" --out="$out" "$@"
  fi
}

for seed in ${SEEDS:-0 1 2}; do
  for variant in $variants; do
    workdir="$root/$variant/$seed"
    config="configs/$what.py"
    base=()
    case "$variant" in
      base | recursive) ;;
      *) config="$config:$variant" ;;
    esac
    if [ "$what" = shapes ] && [ "$variant" != base ]; then
      base=(--config.init.base="$root/base/$seed/run")
    fi
    .venv/bin/python -m tp_jax.main --config="$config" --workdir="$workdir/run" \
      --config.seed="$seed" "${base[@]}" "$@"
    score "$workdir/run" "$workdir"
    case "$variant" in
      recursive | random) score "$workdir/run" "$root/$variant-1/$seed" --latent_steps=1 ;;
    esac
  done
done
.venv/bin/python -m tp_jax.evaluate --suite="$suite" --collect="$root" --out="$root/$what.json"
