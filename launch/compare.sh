#!/usr/bin/env bash
# Train and score the variants of a config from several seeds, and write the mean and the standard
# deviation of their scores.
#   [SEEDS="0 1 2"] bash launch/compare.sh shapes|frozenlake ROOT [--dry-run] [--config.a.b=v …]
#
# The variants are
#   shapes       base (no thinking) and, fine-tuned from it, lora (plain LoRA) and think (recursive
#                sparse thinking)
#   frozenlake   recursive (recursive sparse thinking), random (random experts) and single (trained
#                on single moves, without recursion). recursive-1 and random-1 are the first two,
#                evaluated with one latent step, as single is.
# The script writes ROOT/VARIANT/SEED/ and ROOT/shapes.json or ROOT/frozenlake.json, with a table in
# the .md file of the same name. It skips what is already trained or scored, so a killed comparison
# resumes. It passes --config.a.b=v to every training run.
#   --dry-run   print the commands instead of running them
set -euo pipefail
cd "$(dirname "$0")/.."
script=launch/compare.sh
# shellcheck source=launch/common.sh
. launch/common.sh
# shellcheck source=launch/environment.sh
. launch/environment.sh

words=() options=()
for argument in "$@"; do
  answer_help "$argument"
  case "$argument" in
    --dry-run) dry_run=1 ;;
    # The variants differ in these fields.
    --config.model.thinking*)
      fail "$argument would give all variants the same value: change the file in configs/ instead"
      ;;
    --) ;;
    --*) options+=("$argument") ;;
    *) words+=("$argument") ;;
  esac
done
[ "${#words[@]}" = 2 ] || fail "give shapes or frozenlake, and a folder for the results; see --help"
suite="${words[0]}" root="${words[1]}"
case "$suite" in
  shapes) extras=train variants="base lora think" ;;
  frozenlake) extras=train,frozenlake variants="recursive random single" ;;
  *) fail "there is nothing to compare for $suite: give shapes or frozenlake" ;;
esac
[ -n "$dry_run" ] || use_environment "$extras"

# score RUN OUT [FLAGS…]  unless that was done after the last checkpoint of the run
score() {
  local run_folder="$1" out="$2"
  shift 2
  [ "$suite" != shapes ] || set -- "$@" --overwrite
  if [ ! -e "$out/scores.json" ] || [ "$run_folder/checkpoints" -nt "$out/scores.json" ]; then
    run .venv/bin/python -m tp_jax.evaluate "--suite=$suite" "--workdir=$run_folder" \
      "--out=$out" "$@"
  fi
}

for seed in ${SEEDS:-0 1 2}; do
  for variant in $variants; do
    folder="$root/$variant/$seed"
    config="configs/$suite.py"
    case "$variant" in
      base | recursive) ;;
      *) config="$config:$variant" ;;
    esac
    command=(.venv/bin/python -m tp_jax.main "--config=$config" "--workdir=$folder/run"
      "--config.seed=$seed")
    if [ "$suite" = shapes ] && [ "$variant" != base ]; then
      command+=("--config.init.base=$root/base/$seed/run")
    fi
    [ "${#options[@]}" -eq 0 ] || command+=("${options[@]}")
    run "${command[@]}"
    score "$folder/run" "$folder"
    case "$variant" in
      recursive | random) score "$folder/run" "$root/$variant-1/$seed" --latent_steps=1 ;;
    esac
  done
done
run .venv/bin/python -m tp_jax.evaluate "--suite=$suite" "--collect=$root" "--out=$root/$suite.json"
