"""Convert the Inception weights of FID that mseitzer/pytorch-fid publishes."""

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from tp_jax.files.hub import local
from tp_jax.messages.errors import UserError
from tp_jax.models.inception import SIDE, Inception
from tp_jax.pretrained.folder import load_folder
from tp_jax.pretrained.recognise import find_prefix
from tp_jax.pretrained.state_dict import StateDict

KIND = "inception"
# Names of weights that this model has under no prefix.
ANCHORS = ("Conv2d_1a_3x3.conv.weight", "fc.weight")
EPSILON = 1e-3  # Epsilon of the batch norms.


def load_inception(folder: epath.PathLike) -> tuple[Inception, Any]:
    """Load a folder that `tp_jax.convert --kind=inception` wrote.

    Returns:
      The model, and its parameters for `model.apply({"params": params}, images)`. They are float32
      NumPy arrays: move them to the devices once, with `jax.device_put`.

    Raises:
      UserError: the folder doesn't exist, is incomplete, or holds another kind of weights.
    """
    return Inception(), load_folder(local(folder), KIND)[1]


def convert_inception(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert a state dict of pytorch-fid, and fold each batch norm into its convolution.

    Two entries are dropped: "num_batches_tracked", a counter of torch's training, and "fc.bias",
    which the Inception Score of openai/guided-diffusion doesn't use.

    Raises:
      UserError: a weight is missing, unused or has another shape.
    """
    weights = StateDict(state, find_prefix(state, ANCHORS))
    weights.drop(r".*\.num_batches_tracked$")
    params = {}
    for path, shape in _param_shapes().items():
        *names, layer, leaf = path
        if layer == "conv" and leaf == "kernel":
            folded = _fold_batch_norm(weights, ".".join(names), shape)
            params |= {(*names, "conv", name): array for name, array in folded.items()}
    features, classes = _param_shapes()["fc", "kernel"]
    params["fc", "kernel"] = weights.take("fc.weight", classes, features).T
    weights.take("fc.bias", classes)
    weights.check_all_used()
    return traverse_util.unflatten_dict(params)


@functools.cache
def _param_shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shape of every parameter of our Inception, by its path."""
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    params = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    leaves = traverse_util.flatten_dict(params)
    flat = cast(dict[tuple[str, ...], jax.ShapeDtypeStruct], leaves)
    return {path: leaf.shape for path, leaf in flat.items()}


def _fold_batch_norm(weights: StateDict, key: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Convert a convolution and its batch norm to {"kernel": [kH, kW, in, out], "bias": [out]}."""
    height, width, inputs, outputs = shape
    kernel = weights.take(f"{key}.conv.weight", outputs, inputs, height, width)
    gain, shift, mean, variance = (
        weights.take(f"{key}.bn.{name}", outputs).astype(np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    if variance.min() < 0:
        raise UserError(f"{key}.bn.running_var is negative: download the weights again")
    scale = gain / np.sqrt(variance + EPSILON)
    kernel = kernel.transpose(2, 3, 1, 0) * scale
    bias = shift - mean * scale
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
