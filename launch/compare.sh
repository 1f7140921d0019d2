#!/usr/bin/env bash
# Train and score the variants of a config from several seeds, and write the mean and the standard
# deviation of their scores.
#   [SEEDS=3] [JOBS=1] bash launch/compare.sh shapes|frozenlake ROOT [--dry-run] [--config.a.b=v …]
#
# The variants are
#   shapes       base (no thinking) and, fine-tuned from it, lora (plain LoRA) and think (recursive
#                sparse thinking)
#   frozenlake   recursive (recursive sparse thinking), random (random experts) and single (trained
#                on single moves, without recursion). recursive-1 and random-1 are the first two,
#                trained with the variant any for 1 to 4 latent steps and
#                evaluated with one, as single is.
# It runs the study `compare` of tp_jax.ablate with SEEDS seeds, JOBS cells at a time: a comparison
# that was killed resumes. The script writes ROOT/compare.md, with differences and intervals, and
# ROOT/shapes.json or ROOT/frozenlake.json, with all rows in the .md file of the same name. It passes
# --config.a.b=v to every training run.
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
  shapes) extras=train ;;
  frozenlake) extras=train,frozenlake ;;
  *) fail "there is nothing to compare for $suite: give shapes or frozenlake" ;;
esac
[ -n "$dry_run" ] || use_environment "$extras"

command=(.venv/bin/python -m tp_jax.ablate --study=compare "--config=configs/$suite.py"
  "--seeds=${SEEDS:-3}" "--jobs=${JOBS:-1}" "--suites=$suite" "--out=$root")
[ "${#options[@]}" -eq 0 ] || command+=("${options[@]}")
run "${command[@]}"
run .venv/bin/python -m tp_jax.evaluate "--suite=$suite" "--collect=$root/scores/$suite" \
  "--out=$root/$suite.json"
