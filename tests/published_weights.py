"""The golden files of published weights, and their conversion by the entry."""

import functools
import json
import pathlib

import numpy as np
from conftest import run_entry
from golden.seeded import seeded_weights
from safetensors.numpy import save_file

from tp_jax.models.layers import position_embedding

GOLDEN = pathlib.Path(__file__).parent / "golden"
# The others are sd-vae.
KINDS = {"dit": "dit", "dit_s2": "dit", "inception": "inception", "sd3": "sd3", "sd35": "sd3"}


@functools.cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def torch_state(name):
    arrays = golden(name)
    if name in ("dit", "sd3", "sd35"):
        return {key[2:]: value for key, value in arrays.items() if key.startswith("w/")}
    shapes = json.loads(str(arrays["shapes"]))
    state = seeded_weights(shapes, int(arrays["seed"]), float(arrays["gain"]))
    if name == "dit_s2":
        state["pos_embed"] = position_embedding(384, np.arange(16), np.arange(16))[None]
    return state


def convert(folder, state, kind, *arguments):
    """Runs the entry on a file of these weights; returns what it says."""
    folder.mkdir(exist_ok=True)
    # safetensors would write the buffer of a transposed array as it lies.
    state = {key: np.ascontiguousarray(array) for key, array in state.items()}
    save_file(state, folder / "weights.safetensors")
    flags = [f"--kind={kind}", f"--source={folder / 'weights.safetensors'}"]
    code, _, stderr = run_entry("convert", *flags, f"--out={folder / 'out'}", *arguments)
    assert code == 0, stderr
    (folder / "weights.safetensors").unlink()
    return stderr
