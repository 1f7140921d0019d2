#!/usr/bin/env bash
# Measure tp_jax on one GPU, beside PyTorch, in under nine minutes, and write a page of results.
#   bash launch/bench_gpu.sh [--out=runs/bench_gpu] [--peer_dit=FOLDER] [--size=full] [--dry-run]
#
# Each part is measured by tp_jax.bench, with a time limit. A part that is in the results already is
# skipped: after an interruption the same command goes on, and programs that were compiled before
# come from a cache in the folder. No part is started after --minutes; the same command, given
# again, measures what is missing.
#   --out       the folder for results.json, results.md and the cache of compiled programs
#   --peer_dit  a checkout of https://github.com/facebookresearch/DiT, to measure beside DiT-XL/2
#   --size      full, or small: tiny models, to try the script on any machine
#   --minutes   start no part after so many minutes (8)
#   --python    the interpreter (.venv/bin/python); it has jax for CUDA, and torch for the peers
#   --dry-run   print the commands instead of running them
set -euo pipefail
cd "$(dirname "$0")/.."
script=launch/bench_gpu.sh
# shellcheck source=launch/common.sh
. launch/common.sh

out=runs/bench_gpu peer_dit='' size=full minutes=8 python=.venv/bin/python
parse_arguments "out peer_dit size minutes python" "$@"
case "$size" in
  full | small) ;;
  *) fail "--size=$(quoted "$size"): give full or small" ;;
esac
case "$minutes" in
  '' | *[!0-9]*) fail "--minutes=$(quoted "$minutes"): give a whole number" ;;
esac
if [ -n "$peer_dit" ] && [ ! -e "$peer_dit/models.py" ]; then
  fail "--peer_dit=$(quoted "$peer_dit") has no models.py: name a checkout of" \
    "https://github.com/facebookresearch/DiT"
fi
if [ -z "$dry_run" ]; then
  command -v "$python" > /dev/null ||
    fail "--python=$(quoted "$python") isn't there: see tp_jax/performance/README.md"
  mkdir -p "$out"
fi
export JAX_COMPILATION_CACHE_DIR="$out/cache"

dit=DiT-XL/2 thinking=DiT-B/2 mmdit=MMDiT seconds=0.5
if [ "$size" = small ]; then dit=tiny thinking=tiny mmdit=tiny-MMDiT seconds=0.05; fi
missing=0

# part SECONDS FLAGS…: run tp_jax.bench for at most so many seconds
part() {
  local limit="$1" code=0
  shift
  local command=(timeout --kill-after=10 "$limit" "$python" -m tp_jax.bench "$@"
    "--seconds=$seconds" "--json=$out/results.json" "--report=$out/results.md")
  if [ -n "$dry_run" ]; then
    run "${command[@]}"
    return
  fi
  if [ "$SECONDS" -ge $((60 * minutes)) ]; then
    missing=$((missing + 1))
    return
  fi
  run "${command[@]}" || code=$?
  # A wrong option fails in every part.
  [ "$code" != 2 ] || exit 2
  if [ "$code" != 0 ]; then
    echo "this part ended with exit code $code (124: its time was over)" >&2
    missing=$((missing + 1))
  fi
}

model() {
  echo "--config=configs/bench.py:$1"
}

peer=()
[ -z "$peer_dit" ] || peer=("--peer_dit=$peer_dit")
bf16=--config.model.dtype=bfloat16
# From the most important figure to the least. The base alone takes turns with PyTorch, so that two
# copies of the model have room; the batch is larger where tp_jax runs alone.
part 200 --what=train "$(model "$dit")" ${peer[@]+"${peer[@]}"} --config.model.thinking.layers='()'
part 150 --what=sample "$(model "$dit")" ${peer[@]+"${peer[@]}"} --config.model.thinking.layers='()' \
  --config.sampling.steps=10
part 100 --what=train "$(model "$dit")" --config.train.batch_size=256 --config.model.remat=full
part 90 --what=attention "$(model "$dit")" --peers='()'
part 120 --what=dispatch "$(model "$thinking")" --experts=2,64 --latent_steps=1,5 "$bf16" \
  --config.train.batch_size=32
part 90 --what=train,forward "$(model "$mmdit")" "$bf16" --config.train.batch_size=32
part 60 --what=data,checkpoint "$(model "$thinking")" "$bf16" --config.train.batch_size=32
part 90 --what=forward "$(model "$dit")" ${peer[@]+"${peer[@]}"} --config.model.thinking.layers='()'
[ -z "$dry_run" ] || exit 0

if [ "$missing" -gt 0 ]; then
  echo "parts that are missing in $out/results.json: $missing; give the same command again" >&2
  exit 1
fi
echo "all parts are in $out/results.md after $SECONDS seconds" >&2
