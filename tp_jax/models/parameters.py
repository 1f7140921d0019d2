"""The parameters of a model: their shapes, and their initial values."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tp_jax.files.finite import check_finite
from tp_jax.parallel.randomness import stream_key
from tp_jax.parallel.sharding import path_name
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.layer import ThinkingOptions

Params = dict[str, Any]


def abstract_params(model: nn.Module) -> Params:
    """Return the shapes and dtypes of a model's parameters."""
    return jax.eval_shape(lambda: init_params(model, seed=0))


def init_params(model: nn.Module, seed: int) -> Params:
    """Return the initial parameters of a model.

    Jit this with output shardings, so that no device has to hold all parameters.
    """
    config = model.config
    image = (1, config.image_size, config.image_size, config.channels)
    condition = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.example_condition(1)
    )
    # `init` runs the gate, and gate="random" needs a key even though the result is not used.
    options = ThinkingOptions(GateRandomness(jax.random.key(0), jnp.zeros(1, jnp.int32)))
    inputs = jnp.zeros(image), jnp.zeros(1), condition, options
    return cast(Params, model.init(stream_key(seed, "init"), *inputs)["params"])


def check_finite_params(source: str, params: Any, remedy: str) -> None:
    """Check parameters that were read from files; each process checks the parts that it holds.

    Args:
      source: where they were read, for the error message.
      params: tree of NumPy or JAX arrays.
      remedy: what the user can do, for the error message.

    Raises:
      UserError: one has NaN or infinity; the message names the first.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, leaf in leaves:
        name = f"{source}: the weight {path_name(path)}"
        if not isinstance(leaf, jax.Array):
            check_finite(name, leaf, remedy)
            continue
        # Parts that several devices hold are checked once.
        parts = {str(shard.index): shard for shard in leaf.addressable_shards}
        for part in parts.values():
            origin = [cut.start for cut in part.index]
            check_finite(name, np.asarray(part.data), remedy, origin)
