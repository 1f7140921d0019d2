"""Tiny models with random parameters and inputs."""

import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.models import DiTConfig, MMDiTConfig
from tp_jax.models.parameters import abstract_params
from tp_jax.thinking import ThinkingConfig

THINKING = ThinkingConfig(layers=(0, 2), rank=2, experts=2, gate_width=4)
TINY = {
    "dit": DiTConfig(
        image_size=4, channels=2, out_channels=4, patch=2, depth=4, width=8, heads=2,
        num_classes=3, thinking=THINKING,
    ),
    "mmdit": MMDiTConfig(
        image_size=4, channels=2, out_channels=2, patch=2, depth=4, width=8, heads=2,
        text_width=6, pooled_width=5, text_tokens=3, max_grid=4, base_grid=2,
        qk_norm=True, dual_attention_layers=1, thinking=THINKING,
    ),
}  # fmt: skip


def normal(rng, shape):
    """Sampled by NumPy, because jax.random compiles a program for every shape."""
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def example(model, batch=3):
    """Random images, timesteps and condition for a model."""
    config, rng = model.config, np.random.default_rng(0)

    def draw(leaf):
        if leaf.dtype == jnp.int32:
            return jnp.arange(batch) % config.num_classes
        return normal(rng, leaf.shape)

    x = normal(rng, (batch, config.image_size, config.image_size, config.channels))
    condition = jax.tree.map(draw, model.example_condition(batch))
    return x, jnp.linspace(5, 900, batch), condition


def random_params(model, seed=1, scale=0.3):
    """Random values for every parameter, also for those initialized to zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: scale * normal(rng, leaf.shape), abstract_params(model))
