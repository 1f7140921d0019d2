"""Images with captions: read, prepared as latents with their text, trained on."""

import dataclasses

import jax
import numpy as np
import pytest

from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.cost import equal_rank, layer_parameters
from tp_jax.thinking.layer import init_thinking_layer


def count(config, width):
    layer = jax.eval_shape(lambda key: init_thinking_layer(key, config, width), jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(layer))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"experts": 5, "latent_steps": 5},
        {"latent_steps": 3, "share_across_steps": False, "rank": 7},
        {"gate": "random"},
        {"gate_inputs": ("token",), "gate_width": 40},
    ],
)
def test_plain_lora_of_equal_rank_has_as_many_parameters(fields):
    width, config = 96, ThinkingConfig(**fields)
    assert layer_parameters(width, config) == count(config, width)
    lora = ThinkingConfig(experts=1, latent_steps=1, gate="first", rank=equal_rank(width, config))
    # To the nearest: one rank is 6·width parameters.
    assert abs(count(lora, width) - count(config, width)) <= 6 * width / 2
    assert count(dataclasses.replace(lora, rank=1), width) == (2 + 6) * width
