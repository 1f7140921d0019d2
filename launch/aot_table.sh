#!/usr/bin/env bash
# Compiles the configs for TPUs that aren't here, and prints the table of launch/README.md.
#   bash launch/aot_table.sh [DIR]     (runs/aot) keeps each report there, and does what is missing
# Needs TP_JAX_EXTRAS=tpu once, and no TPU.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

folder="${1:-runs/aot}"
use_environment train
python="${TP_JAX_PYTHON:-.venv/bin/python}"
mkdir -p "$folder"

# compile NAME CONFIG TOPOLOGY SLICES FLAGS…
compile() {
  local name="$1" config="$2" topology="$3" slices="$4"
  shift 4
  [ ! -e "$folder/$name.json" ] || return 0
  echo "$name" >&2
  "$python" -m tp_jax.aot --config="$config" --topology="$topology" --slices="$slices" \
    --json="$folder/$name.json" "$@" > /dev/null
}

for job in fine-tuning scratch; do
  config=configs/imagenet256.py
  [ "$job" = fine-tuning ] || config=configs/imagenet256.py:scratch
  for kind in v4 v5e v5p; do
    case "$kind" in
      v5e) shapes="2x2 4x4 8x8 16x16" ;;
      *) shapes="2x2x1 2x2x4 4x4x4 4x8x8" ;;
    esac
    number=0
    for shape in $shapes; do
      number=$((number + 1))
      # The width, 1152, can be cut into 128 parts, so half a batch beside it for 256 chips.
      mesh=(--config.mesh.data=1 --config.mesh.fsdp=-1)
      [ "$number" -lt 4 ] || mesh=(--config.mesh.data=2 --config.mesh.fsdp=128)
      compile "imagenet256-$job-$kind-$number" "$config" "$kind:$shape" 1 "${mesh[@]}"
    done
    # 1,024 chips for a batch of 256: four of them share a sample.
    if [ "$kind" = v5e ]; then
      compile "imagenet256-$job-$kind-5" "$config" v5e:16x16 4 \
        --config.mesh.data=1 --config.mesh.fsdp=64 --config.mesh.tensor=4
    else
      compile "imagenet256-$job-$kind-5" "$config" "$kind:8x8x16" 1 \
        --config.mesh.data=2 --config.mesh.fsdp=128 --config.mesh.tensor=4
    fi
  done
done
compile sd3-fine-tuning-v5e configs/sd3_coco.py v5e:8x8 1 --config.mesh.data=1 --config.mesh.fsdp=-1

"$python" - "$folder" << 'END'
import json, pathlib, sys

print("| job | chips | mesh | held GiB | peak GiB | TFLOP | exchanged MiB | step ≥ ms | MFU ≤ |")
print("|---|---|---|---|---|---|---|---|---|")
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.json")):
    r = json.loads(path.read_text())
    name = path.stem.rsplit("-", 2 if path.stem[-1].isdigit() else 1)[0]
    slices = f" × {r['slices']}" if r["slices"] > 1 else ""
    mesh = " × ".join(f"{k} {v}" for k, v in r["mesh"].items())
    peak = f"{r['peak'] / 2**30:.2f}" if r["peak"] else "too much"
    exchanged = sum(each["received"] for each in r["collectives"]) / 2**20
    bound, seconds = max(r["bounds"].items(), key=lambda item: item[1])
    print(
        f"| {name} | {r['chips']:,}: {r['topology']}{slices} | {mesh} "
        f"| {sum(r['held'].values()) / 2**30:.2f} | {peak} | {r['program_flops'] / 1e12:.2f} "
        f"| {exchanged:,.0f} | {1e3 * seconds:.1f} ({bound}) | {r['model_flops_utilisation']:.0%} |"
    )
END
