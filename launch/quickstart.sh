#!/usr/bin/env bash
# Train a small model of handwritten digits and sample from it: create .venv, install the package,
# train for 1,000 steps on 1,619 real scans, and sample ten images of each digit.
#   bash launch/quickstart.sh [--config.a.b=v …]
# Takes about two minutes on two CPU cores; installing takes 1.2 GB of disk. A run that was stopped
# resumes with the same command. Environment variables:
#   WORKDIR          the folder for checkpoints and pictures; runs/quickstart by default
#   TP_JAX_EXTRAS    cuda or tpu, to train on an accelerator
# PYTHON and TP_JAX_NEWEST are described in launch/environment.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
script=launch/quickstart.sh
# shellcheck source=launch/common.sh
. launch/common.sh
# shellcheck source=launch/environment.sh
. launch/environment.sh

for argument in "$@"; do
  answer_help "$argument"
  case "$argument" in
    --config.*) ;;
    *) fail "unexpected argument $(quoted "$argument"): only --config.a.b=v; see --help" ;;
  esac
done
workdir="${WORKDIR:-runs/quickstart}"
pictures="$workdir/pictures"
cat << END
This trains a small diffusion transformer that thinks in two of its blocks, on 1,619 scans of
handwritten digits, and then samples from it. It takes about two minutes on two CPU cores. If you
stop it, the same command resumes from the last checkpoint.

END
use_environment train
echo "1/2 training"
.venv/bin/python -m tp_jax.main --config=configs/quickstart.py --workdir="$workdir" "$@"
echo
echo "2/2 sampling ten images of each digit, and drawing how the model thinks"
# With the batch of the sample grids of training, their compiled program is used again.
.venv/bin/python -m tp_jax.sample --workdir="$workdir" --out="$pictures" --num=100 \
  --batch_size=100 --show_thinking --overwrite
cat << END

Look at
  $pictures/grid.png: ten samples of each digit
  $pictures/comparison.png: the same noise without thinking, and with one and with two latent steps
  $pictures/routing.png: which expert the gate chose for each token, at each latent step
  $workdir/samples/: samples after 500 and after 1,000 steps
Try next, the same digits with four latent steps instead of two:
  .venv/bin/python -m tp_jax.sample --workdir=$workdir --out=$workdir/four --num=100 --latent_steps=4
Curves: .venv/bin/tensorboard --logdir=$workdir
For other commands, activate the environment: source .venv/bin/activate
END
