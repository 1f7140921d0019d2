"""Weights of FID's Inception, as mseitzer/pytorch-fid publishes them."""

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from tp_jax.models.inception import SIDE, Inception
from tp_jax.pretrained.folder import load_folder
from tp_jax.pretrained.state_dict import StateDict

KIND = "inception"
EPSILON = 1e-3  # of the batch norms


def load_inception(folder: epath.PathLike) -> tuple[Inception, Any]:
    """Loads a folder that `tp_jax.convert --kind=inception` wrote.

    Returns:
      The model, and its parameters for `model.apply({"params": params}, images)`, NumPy float32:
      put them on devices once.

    Raises:
      UserError: there is no such folder, or it is incomplete or of another kind.
    """
    return Inception(), load_folder(epath.Path(folder), KIND)[1]


def convert_inception(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our parameters, with each batch norm folded into its convolution.

    Two things aren't used: "num_batches_tracked", a counter of torch's training, and "fc.bias",
    which the Inception Score of openai/guided-diffusion leaves out.

    Raises:
      UserError: a weight is missing, left over or has another shape.
    """
    weights = StateDict(state)
    weights.drop(r".*\.num_batches_tracked$")
    params = {}
    for path, shape in _shapes().items():
        *names, layer, leaf = path
        if layer == "conv" and leaf == "kernel":
            folded = _folded(weights, ".".join(names), shape)
            params |= {(*names, "conv", name): array for name, array in folded.items()}
    features, classes = _shapes()["fc", "kernel"]
    params["fc", "kernel"] = weights.take("fc.weight", classes, features).T
    weights.take("fc.bias", classes)
    weights.check_used_up()
    return traverse_util.unflatten_dict(params)


@functools.cache
def _shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every parameter, by its path."""
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    params = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    leaves = traverse_util.flatten_dict(params)
    flat = cast(dict[tuple[str, ...], jax.ShapeDtypeStruct], leaves)
    return {path: leaf.shape for path, leaf in flat.items()}


def _folded(weights: StateDict, key: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Kernel [kH, kW, in, out] and bias [out] of a convolution followed by a batch norm."""
    height, width, inputs, outputs = shape
    kernel = weights.take(f"{key}.conv.weight", outputs, inputs, height, width)
    gain, shift, mean, variance = (
        weights.take(f"{key}.bn.{name}", outputs).astype(np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / np.sqrt(variance + EPSILON)
    kernel = kernel.transpose(2, 3, 1, 0) * scale
    bias = shift - mean * scale
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
