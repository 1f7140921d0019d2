"""DiT and MMDiT: sizes, parameter trees, and the properties that thinking must keep in them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import TINY, example, random_params

from tp_jax.messages.errors import UserError
from tp_jax.models import DiTConfig, MMDiTConfig, build_model, dit_config, mmdit_config
from tp_jax.models.config import REMAT
from tp_jax.models.flops import forward_flops, train_step_flops
from tp_jax.models.layers import linear
from tp_jax.models.parameters import abstract_params
from tp_jax.models.stack import REMAT_POLICIES
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.layer import ThinkingOptions


def run(model, params, inputs, options=None):
    """Return the model's prediction, computed under jit."""
    options = options or ThinkingOptions()
    return jax.jit(lambda p: model.apply({"params": p}, *inputs, options)[0])(params)


def changed(config, **fields):
    """Return the config with the given fields of the model or of its thinking replaced."""
    thinking = {k: v for k, v in fields.items() if k in ThinkingConfig.__dataclass_fields__}
    rest = {k: v for k, v in fields.items() if k not in thinking}
    thinking = dataclasses.replace(config.thinking, **thinking)
    return dataclasses.replace(config, thinking=thinking, **rest)


def count(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


def test_dit_xl_2_has_the_published_number_of_parameters():
    model = build_model(DiTConfig(**dit_config.SIZES["XL"]))
    # The published file also holds the fixed position table, 256·1152 numbers.
    assert count(abstract_params(model)["base"]) + 256 * 1152 == 675_129_632


def test_sd3_medium_has_the_published_number_of_parameters():
    config = MMDiTConfig(
        **mmdit_config.SIZES["SD3-medium"], thinking=ThinkingConfig(layers=(4, 8, 12))
    )
    assert count(abstract_params(build_model(config))["base"]) == 2_028_328_000


def test_the_choices_of_remat_are_the_policies_of_the_stack():
    assert tuple(REMAT_POLICIES) == REMAT


@pytest.mark.parametrize("size", dit_config.SIZES)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_every_dit_initialises_abstractly(size, patch):
    config = DiTConfig(**dit_config.SIZES[size], patch=patch, thinking=ThinkingConfig(layers=(3,)))
    params = abstract_params(build_model(config))
    assert params["base"]["patch_embed"]["kernel"].shape == (patch * patch * 4, config.width)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("kind", TINY)
def test_base_params_do_not_depend_on_which_blocks_think(kind):
    shapes = [
        abstract_params(build_model(changed(TINY[kind], layers=layers)))
        for layers in [(), (0,), (1, 2), (3,), (0, 1, 2, 3)]
    ]
    assert "thinking" not in shapes[0]
    for layers, params in zip([(0,), (1, 2)], shapes[1:3], strict=True):
        assert set(params["thinking"]) == {f"layer_{i}" for i in layers}
    for params in shapes:
        assert params["base"] == shapes[0]["base"]


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize(
    "dispatch,experts,latent_steps",
    [("dense", 2, 2), pytest.param("grouped", 5, 5, marks=pytest.mark.slow)],
)
def test_attaching_untrained_thinking_keeps_the_output(kind, dispatch, experts, latent_steps):
    # test_thinking.py checks a single layer for every T, M and dispatch.
    fields = dict(dispatch=dispatch, experts=experts, latent_steps=latent_steps)
    thinks = build_model(changed(TINY[kind], layers=(0, 1, 3), **fields))
    plain = build_model(changed(TINY[kind], layers=()))
    params = random_params(thinks)
    for layer in params["thinking"].values():
        layer["experts"]["lora_b"] *= 0
    inputs = example(plain)
    wanted = run(plain, {"base": params["base"]}, inputs)
    noise = GateRandomness(jax.random.key(2), jnp.arange(3))

    @jax.jit
    def both(params):
        return [
            thinks.apply({"params": params}, *inputs, options)[0]
            for options in (ThinkingOptions(), ThinkingOptions(noise))
        ]

    for found in both(params):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    # With B ≠ 0, thinking changes the output.
    assert np.abs(both(random_params(thinks))[0] - wanted).max() > 1e-3


@functools.cache
def value_and_grad(config):
    model = build_model(config)
    inputs = example(model)

    def loss(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, *inputs)[0]))

    return jax.jit(jax.value_and_grad(loss))(random_params(model))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "dit")) for kind in TINY]
)
@pytest.mark.parametrize("fields", [dict(scan_blocks=False), dict(remat="full", layers=(2, 0))])
def test_scan_and_remat_change_no_value_and_no_gradient(kind, fields):
    wanted, wanted_grads = value_and_grad(TINY[kind])
    found, grads = value_and_grad(changed(TINY[kind], **fields))
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)

    def close(a, b):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))

    jax.tree.map(close, grads, wanted_grads)


def test_a_linear_layer_and_its_gradients_are_products_of_two_matrices():
    def loss(x, kernel):
        return jnp.sum(jnp.square(linear(x, kernel)))

    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3, 4), (4, 5)))
    program = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel).lower().as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    contracted = sorted(line.split("contracting_dims = ")[1].split(",")[0] for line in products)
    # Of the layer, of the gradient of x, and of the gradient of the kernel.
    assert contracted == ["[0] x [0]", "[1] x [0]", "[1] x [1]"]
    assert "transpose" not in program


@pytest.mark.parametrize("kind", TINY)
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(kind):
    model = build_model(TINY[kind])
    params, inputs = random_params(model), example(model)
    apply = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs)[0])
    together = apply(*inputs)
    for i in range(3):
        alone = apply(*jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], inputs))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5 * np.abs(together).max())


@pytest.mark.parametrize("kind", TINY)
def test_bfloat16_stays_near_float32(kind):
    config = TINY[kind]
    model, low = build_model(config), build_model(changed(config, dtype="bfloat16"))
    params, inputs = random_params(model, scale=0.1), example(model)
    wanted, found = run(model, params, inputs), run(low, params, inputs)
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_scanned_blocks_compile_to_a_smaller_program():
    def instructions(config):
        model = build_model(config)
        params, inputs = abstract_params(model), example(model)
        lowered = jax.jit(lambda p: model.apply({"params": p}, *inputs)[0]).lower(params)
        return lowered.compile().as_text().count(" = ")

    deep = changed(TINY["dit"], depth=16, layers=(8,))
    assert instructions(deep) < instructions(changed(deep, scan_blocks=False)) / 2


def test_analytic_flops_agree_with_the_compiler():
    # The blocks are unrolled because the compiler counts the body of a scan only once. They are
    # wide because the compiler also counts operations other than matrix products.
    config = DiTConfig(
        image_size=16, channels=4, patch=2, depth=2, width=128, heads=2, scan_blocks=False,
        thinking=ThinkingConfig(layers=(1,), experts=1, rank=32, latent_steps=2, gate_width=32),
    )  # fmt: skip
    text = MMDiTConfig(
        image_size=16, channels=4, out_channels=4, patch=2, depth=2, width=128, heads=2,
        text_width=64, pooled_width=32, text_tokens=20, max_grid=8, scan_blocks=False,
        thinking=ThinkingConfig(layers=(0,), experts=1, rank=32, latent_steps=2, gate_width=32),
    )  # fmt: skip
    for each in (config, text):
        model = build_model(each)
        params, inputs = abstract_params(model), example(model, batch=2)
        lowered = jax.jit(lambda p, m=model, i=inputs: m.apply({"params": p}, *i)[0]).lower(params)
        assert 2 * forward_flops(each) == pytest.approx(
            lowered.compile().cost_analysis()["flops"], rel=0.1
        )


def test_training_with_a_frozen_base_costs_fewer_flops():
    config = DiTConfig(**dit_config.SIZES["XL"])
    whole = train_step_flops(config, 256, "all") / 16e12
    thinking = train_step_flops(config, 256, "thinking") / 16e12
    # TFLOP per chip that XLA counted when compiling for 16 TPU v5e chips at batch 256.
    assert (whole, thinking) == (pytest.approx(11.6, rel=0.05), pytest.approx(6.2, rel=0.1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(patch=3), "patch=3 does not divide"),
        (dict(heads=3), "width=8 must be a multiple"),
        (dict(dtype="float16"), "float32, bfloat16"),
        (dict(remat="some"), "none, dots, full"),
        (dict(layers=(4,)), "block 4 does not exist; the model has blocks 0 to 3"),
        (dict(layers=(-1,)), "block -1 does not exist"),
    ],
)
def test_an_invalid_field_is_named(fields, message):
    with pytest.raises(UserError, match=message):
        changed(TINY["dit"], **fields)


def test_an_image_larger_than_the_position_table_is_refused():
    model = build_model(changed(TINY["mmdit"], max_grid=2))
    x, t, condition = example(model)
    with pytest.raises(UserError, match="max_grid=2"):
        model.apply({"params": random_params(model)}, jnp.tile(x, (1, 2, 2, 1)), t, condition)


def test_unconditional_dit_has_one_label():
    model = build_model(changed(TINY["dit"], num_classes=0))
    assert abstract_params(model)["base"]["label_embed"]["embedding"].shape == (1, 8)
    labels = {"label": jnp.zeros(3, jnp.int32)}
    np.testing.assert_array_equal(model.null_condition(labels)["label"], 0)
