"""The variants of configs/sd3_coco.py."""

import dataclasses
import pathlib
import runpy

import jax
import numpy as np
import pytest

from tp_jax import config as config_lib
from tp_jax.messages.errors import UserError
from tp_jax.models import build_model
from tp_jax.models.parameters import abstract_params
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.layer import init_thinking_layer
from tp_jax.thinking.parameter_count import count_layer_parameters, matched_lora_rank

SD3 = pathlib.Path(__file__).parents[1] / "configs" / "sd3_coco.py"


get_sd3 = runpy.run_path(str(SD3))["get_config"]


def count(config, width):
    """Return the number of parameters of one thinking layer."""
    layer = jax.eval_shape(lambda key: init_thinking_layer(key, config, width), jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(layer))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"experts": 5, "latent_steps": 5},
        {"latent_steps": 3, "share_across_steps": False, "rank": 7},
        {"gate": "random"},
        {"halting": "ponder"},
        {"gate_inputs": ("token",), "gate_width": 40},
    ],
)
def test_plain_lora_of_equal_rank_has_as_many_parameters(fields):
    width, config = 96, ThinkingConfig(**fields)
    assert count_layer_parameters(width, config) == count(config, width)
    lora = ThinkingConfig(
        experts=1, latent_steps=1, gate="first", rank=matched_lora_rank(width, config)
    )
    # Equal up to rounding the rank; one more rank is 6·width parameters.
    assert abs(count(lora, width) - count(config, width)) <= 6 * width / 2
    assert count(dataclasses.replace(lora, rank=1), width) == (2 + 6) * width


def trained_parameters(argument):
    """Return the number of trained parameters of a variant of the config."""
    config = get_sd3(argument)
    params = abstract_params(build_model(config_lib.build(config).model))["thinking"]
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def test_each_variant_sets_its_fields_and_parameter_count():
    ours, lora = trained_parameters(""), trained_parameters("lora")
    assert abs(lora / ours - 1) < 2e-3 and ours == pytest.approx(8.86e6, rel=0.01)
    thinking = get_sd3("lora,one-layer,no-mod").model.thinking
    assert (thinking.experts, thinking.latent_steps, thinking.gate) == (1, 1, "first")
    assert thinking.layers == (12,) and not thinking.modulate
    assert trained_parameters("one-layer") * 3 == ours
    five = get_sd3("m5t5,512")
    assert (five.model.thinking.experts, five.model.thinking.latent_steps) == (5, 5)
    assert five.model.image_size == 64 and five.data.dir != get_sd3().data.dir
    assert abs(trained_parameters("m5t5,lora") / trained_parameters("m5t5") - 1) < 2e-3
    config_lib.build(get_sd3("debug,lora,512"))
    assert get_sd3("debug").data.source == "synthetic"
    with pytest.raises(UserError, match="unknown variant 'lara': choose from one-layer, m5t5"):
        get_sd3("lora,lara")
