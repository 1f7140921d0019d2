"""Compare DiT and MMDiT with public torch models (see tests/golden/README.md)."""

import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from tp_jax.diffusion.guidance import guide
from tp_jax.messages.errors import UserError
from tp_jax.models import DiTConfig, MMDiTConfig, build_model
from tp_jax.models.layers import position_embedding, timestep_embedding
from tp_jax.models.parameters import abstract_params
from tp_jax.pretrained import read_dit, read_sd3
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.layer import Thinking, ThinkingOptions

GOLDEN = pathlib.Path(__file__).parent / "golden"
# Relative to the largest output. Torch's rounding error is 1.5e-6 for outputs of deviation 1.1.
TOLERANCE = 1e-5
THINKING = ThinkingConfig(layers=(1,), rank=4, latent_steps=2, experts=2, gate_width=8)
NO_THINKING = ThinkingConfig(layers=())
# These tests spend most of their time on compilation.
FAST_COMPILATION = {"xla_backend_optimization_level": 0}
READERS = {"dit": read_dit, "sd3": read_sd3, "sd35": read_sd3}


@functools.cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def torch_state(name):
    return {key[2:]: value for key, value in golden(name).items() if key.startswith("w/")}


def our_config(name, thinking=NO_THINKING):
    theirs = json.loads(str(golden(name)["config"]))
    if name == "dit":
        return DiTConfig(
            image_size=theirs["input_size"],
            channels=theirs["in_channels"],
            out_channels=2 * theirs["in_channels"],
            patch=theirs["patch_size"],
            depth=theirs["depth"],
            width=theirs["hidden_size"],
            heads=theirs["num_heads"],
            num_classes=theirs["num_classes"],
            thinking=thinking,
        )
    dual = theirs["dual_attention_layers"]
    assert dual == list(range(len(dual)))
    return MMDiTConfig(
        image_size=theirs["sample_size"],
        channels=theirs["in_channels"],
        out_channels=theirs["out_channels"],
        patch=theirs["patch_size"],
        depth=theirs["num_layers"],
        width=theirs["num_attention_heads"] * theirs["attention_head_dim"],
        heads=theirs["num_attention_heads"],
        text_width=theirs["joint_attention_dim"],
        pooled_width=theirs["pooled_projection_dim"],
        qk_norm=theirs["qk_norm"] == "rms_norm",
        dual_attention_layers=len(dual),
        max_grid=theirs["pos_embed_max_size"],
        base_grid=theirs["sample_size"] // theirs["patch_size"],
        thinking=thinking,
    )


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def golden_inputs(name, suffix=""):
    arrays = golden(name)
    if name == "dit":
        return channels_last(arrays["x"]), arrays["t"], {"label": arrays["y"]}
    text, pooled = arrays["encoder_hidden_states"], arrays["pooled_projections"]
    condition = {"text": text, "pooled": pooled}
    return channels_last(arrays[f"hidden_states{suffix}"]), arrays["timestep"], condition


def golden_model(name, thinking=NO_THINKING):
    """Our model with the base weights of a golden file and new thinking parameters."""
    model = build_model(our_config(name, thinking))
    base = READERS[name](torch_state(name), model.config)
    if not thinking.layers:
        return model, {"base": base}
    return model, {"base": base, "thinking": fresh_thinking(thinking, model.config.width)}


@functools.cache
def fresh_thinking(config, width):
    """Newly initialised thinking parameters for a model of this width."""
    init = jax.jit(Thinking(config, width).init, compiler_options=FAST_COMPILATION)
    return init(jax.random.key(0), ThinkingOptions(), 1)["params"]


@jax.default_matmul_precision("highest")
def apply(model, params, *inputs):
    run = jax.jit(model.apply, compiler_options=FAST_COMPILATION)
    return run({"params": params}, *inputs)


def assert_matches(ours, theirs):
    theirs = channels_last(theirs)
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"relative error {error:.1e}")
    assert error < TOLERANCE


@pytest.mark.parametrize(
    ("name", "suffix"), [("dit", ""), ("sd3", ""), ("sd3", "_wide"), ("sd35", "")]
)
def test_output_equals_the_public_model(name, suffix):
    model, params = golden_model(name)
    output, routing_stats = apply(model, params, *golden_inputs(name, suffix))
    assert not routing_stats
    assert_matches(output, golden(name)[f"out{suffix}"])


@pytest.mark.parametrize("name", READERS)
def test_untrained_thinking_does_not_change_the_output(name):
    model, params = golden_model(name, THINKING)
    output, routing_stats = apply(model, params, *golden_inputs(name))
    assert list(routing_stats) == [1]
    assert_matches(output, golden(name)["out"])


def test_guided_dit_equals_the_public_model():
    arrays = golden("dit")
    model, params = golden_model("dit")
    images = len(arrays["cfg_y"]) // 2
    condition, null = {"label": arrays["cfg_y"][:images]}, {"label": arrays["cfg_y"][images:]}
    np.testing.assert_array_equal(model.null_condition(condition)["label"], null["label"])

    def predict(x, timestep, condition, rest):
        return apply(model, params, x, timestep, condition)[0]

    guided = guide(predict, condition, null, scale=float(arrays["cfg_scale"]), channels=3)
    output = guided(channels_last(arrays["cfg_x"][:images]), arrays["cfg_t"][:images])
    assert_matches(output, arrays["cfg_out"][:images])


@pytest.mark.parametrize("name", READERS)
def test_timestep_embedding(name):
    arrays = golden(name)
    ours = timestep_embedding(golden_inputs(name)[1])
    # At timestep 999 the angles are so large that adjacent float32 values differ by 6e-5.
    np.testing.assert_allclose(ours, arrays["t_sinusoid"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", READERS)
def test_position_table(name):
    config = our_config(name)
    if name == "dit":
        key, positions = "pos_embed", np.arange(config.image_size // config.patch)
    else:
        key, scale = "pos_embed.pos_embed", config.base_grid / config.max_grid
        positions = np.arange(config.max_grid) * scale
    ours = position_embedding(config.width, positions, positions)
    np.testing.assert_allclose(ours, torch_state(name)[key][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", READERS)
def test_read_weights_match_the_parameter_tree(name):
    model, params = golden_model(name, THINKING)
    shapes, read = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
        for tree in (abstract_params(model), params)
    )
    assert read == shapes


@pytest.mark.parametrize("name", READERS)
def test_missing_and_unexpected_weights_are_named(name):
    state, config = torch_state(name), our_config(name)
    for missing in state:
        rest = {key: value for key, value in state.items() if key != missing}
        with pytest.raises(UserError, match=re.escape(missing)):
            READERS[name](rest, config)
    with pytest.raises(UserError, match="one_too_many"):
        READERS[name](state | {"one_too_many": np.zeros(1)}, config)


@pytest.mark.parametrize("name", READERS)
def test_wrong_position_table_is_refused(name):
    state, config = torch_state(name), our_config(name)
    key = next(key for key in state if key.endswith("pos_embed"))
    with pytest.raises(UserError, match=re.escape(key)):
        READERS[name](state | {key: np.roll(state[key], 1, axis=1)}, config)
    with pytest.raises(UserError, match=re.escape(key)):
        READERS[name](state | {key: state[key][:, :-1]}, config)
