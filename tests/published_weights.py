"""Read golden files of published models and convert their weights with `tp_jax.convert`."""

import functools
import json
import pathlib

import numpy as np
from conftest import run_entry
from golden.seeded import seeded_weights
from safetensors.numpy import save_file

from tp_jax.models.layers import position_embedding

GOLDEN = pathlib.Path(__file__).parent / "golden"
# `--kind` for each golden file; files that are not listed are sd-vae.
KINDS = {
    "dit": "dit",
    "dit_s2": "dit",
    "inception": "inception",
    "sd3": "sd3",
    "sd35": "sd3",
    "sit": "sit",
}


@functools.cache
def golden(name):
    """The arrays of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def torch_state(name):
    """The torch state dict of a golden file, stored in it or generated from its seed."""
    arrays = golden(name)
    if name in ("dit", "sd3", "sd35", "sit"):
        return {key[2:]: value for key, value in arrays.items() if key.startswith("w/")}
    shapes = json.loads(str(arrays["shapes"]))
    state = seeded_weights(shapes, int(arrays["seed"]), float(arrays["gain"]))
    if name == "dit_s2":
        state["pos_embed"] = position_embedding(384, np.arange(16), np.arange(16))[None]
    return state


def convert(folder, state, kind, *arguments):
    """Run `tp_jax.convert` on a file with these weights; return its stderr."""
    folder.mkdir(exist_ok=True)
    # safetensors ignores strides: it would write a transposed array's buffer in the wrong order.
    state = {key: np.ascontiguousarray(array) for key, array in state.items()}
    save_file(state, folder / "weights.safetensors")
    flags = [f"--kind={kind}", f"--source={folder / 'weights.safetensors'}"]
    code, _, stderr = run_entry("convert", *flags, f"--out={folder / 'out'}", *arguments)
    assert code == 0, stderr
    (folder / "weights.safetensors").unlink()
    return stderr
