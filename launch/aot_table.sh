#!/usr/bin/env bash
# Compile the configs for TPU slices with tp_jax.aot, and print the table of launch/README.md.
#   bash launch/aot_table.sh [--out=runs/aot] [--dry-run]
#
# It needs no TPU, and takes half an hour on two cores. It skips every report that is already in the
# folder: give a new folder after a change of the code or the configs.
#   --out       the folder for the reports, one JSON file each
#   --dry-run   print the commands instead of running them
set -euo pipefail
cd "$(dirname "$0")/.."
script=launch/aot_table.sh
# shellcheck source=launch/common.sh
. launch/common.sh
# shellcheck source=launch/environment.sh
. launch/environment.sh

out=runs/aot
parse_arguments "out" "$@"
if [ -z "$dry_run" ]; then
  TP_JAX_EXTRAS=tpu use_environment train
  mkdir -p "$out"
fi

# compile NAME CONFIG TOPOLOGY SLICES FLAGS…
compile() {
  local report="$out/$1.json" config="$2" topology="$3" slices="$4"
  shift 4
  [ ! -e "$report" ] || return 0
  local command=(.venv/bin/python -m tp_jax.aot "--config=$config" "--topology=$topology"
    "--slices=$slices" "--json=$report" --noadvise "$@")
  if [ -n "$dry_run" ]; then
    run "${command[@]}"
  else
    run "${command[@]}" > /dev/null
  fi
}

# Fine-tuning replicates the frozen base on every chip, so that only the small gradients are
# exchanged. Training from scratch shards every weight with fsdp, over at most 128 chips: 128 is the
# largest power of two that divides the width, 1152.
imagenet() {
  local job="$1" config="$2" kind="$3" shape
  local -a shapes=(2x2x1 2x2x4 4x4x4 4x8x8) largest=(8x8x16 1)
  if [ "$kind" = v5e ]; then shapes=(2x2 4x4 8x8 16x16) largest=(16x16 4); fi
  for shape in "${shapes[@]}"; do
    local mesh=(--config.mesh.data=-1)
    if [ "$job" = scratch ]; then
      mesh=(--config.mesh.data=1 --config.mesh.fsdp=-1)
      [ "$shape" != "${shapes[3]}" ] || mesh=(--config.mesh.data=2 --config.mesh.fsdp=128)
    fi
    compile "imagenet256-$job-$kind-$shape" "$config" "$kind:$shape" 1 "${mesh[@]}"
  done
  # 1,024 chips have more devices than samples: four chips compute a sample together.
  mesh=(--config.mesh.data=-1 --config.mesh.tensor=4)
  [ "$job" != scratch ] || mesh+=(--config.mesh.fsdp=64)
  compile "imagenet256-$job-$kind-1024" "$config" "$kind:${largest[0]}" "${largest[1]}" "${mesh[@]}"
}

for kind in v4 v5e v5p; do
  imagenet fine-tuning configs/imagenet256.py "$kind"
  imagenet scratch configs/imagenet256.py:scratch "$kind"
done
compile sd3-fine-tuning-v5e-8x8 configs/sd3_coco.py v5e:8x8 1 \
  --config.mesh.data=1 --config.mesh.fsdp=-1
[ -z "$dry_run" ] || exit 0

.venv/bin/python - "$out" << 'END'
import json, pathlib, sys

print("| job | chips | mesh | state GiB | peak GiB | TFLOP | received MiB | step ≥ ms | MFU ≤ |")
print("|---|---|---|---|---|---|---|---|---|")
files = pathlib.Path(sys.argv[1]).glob("*.json")
reports = [(file.stem, json.loads(file.read_text())) for file in files]
for name, r in sorted(reports, key=lambda item: (item[0].rsplit("-", 1)[0], item[1]["chips"])):
    slices = f" × {r['slices']}" if r["slices"] > 1 else ""
    mesh = " × ".join(f"{k} {v}" for k, v in r["mesh"].items())
    peak = f"{r['peak'] / 2**30:.2f}" if r["peak"] else "does not fit"
    received = sum(each["received"] for each in r["collectives"]) / 2**20
    bound, seconds = max(r["bounds"].items(), key=lambda item: item[1])
    print(
        f"| {name.rsplit('-', 2)[0]} | {r['chips']:,}: {r['topology']}{slices} | {mesh} "
        f"| {sum(r['held'].values()) / 2**30:.2f} | {peak} | {r['program_flops'] / 1e12:.2f} "
        f"| {received:,.0f} | {1e3 * seconds:.1f} ({bound}) | {r['model_flops_utilisation']:.0%} |"
    )
END
