"""The parameters of a model: their shapes, and their initial values."""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from tp_jax.parallel.randomness import stream_key
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
