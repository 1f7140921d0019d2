"""The whole quickstart: its samples have the requested classes and aren't copies of scans."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

ROOT = pathlib.Path(__file__).parents[1]


def run(module, *flags):
    # conftest sets XLA_FLAGS for quick compilation; this run needs fast programs instead.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-m", module, *flags], cwd=ROOT, env=environment, check=True)


@pytest.mark.slow
def test_samples_have_the_requested_classes_and_are_no_copies(tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "samples.npz"
    run("tp_jax.main", "--config=configs/quickstart.py", f"--workdir={workdir}")
    run("tp_jax.sample", f"--workdir={workdir}", f"--out={out}", "--num=500", "--batch_size=100")
    with np.load(out) as file:
        drawn, labels = file["arr_0"].reshape(500, 64).astype(float), file["arr_1"]
    real, classes = load_digits(return_X_y=True)
    real = np.round(real * (255 / 16))
    found = KNeighborsClassifier(3).fit(real, classes).predict(drawn)
    nearest = NearestNeighbors(n_neighbors=1).fit(real).kneighbors(drawn)[0]
    share, distance = np.mean(found == labels), nearest.min()
    print(f"\n{share:.1%} have the requested class; the nearest scan is {distance:.0f} away")
    assert np.mean(found == labels) >= 0.95
    assert len(np.unique(drawn, axis=0)) == 500
    assert nearest.min() > 50
