"""What a train step of the thinking layers alone computes and stores."""

import runpy

import jax
import jax.numpy as jnp
import pytest
from small_configs import tiny_shapes

from tp_jax import config as config_lib
from tp_jax.models import build_model
from tp_jax.models.dit_config import SIZES
from tp_jax.models.flops import train_step_flops
from tp_jax.parallel.axes import ONE_DEVICE
from tp_jax.parallel.mesh import create_mesh
from tp_jax.performance.programs import trace
from tp_jax.performance.traced_flops import traced_flops
from tp_jax.thinking.layer import ThinkingOptions

DEPTH, LAYER = 6, 3


def step_of(deep_supervision=0.0, **thinking):
    """Trace a train step of block 3 of a DiT-S/2 with six blocks, and return (config, jaxpr)."""
    config = runpy.run_path("configs/imagenet256.py")["get_config"]("scratch")
    config.model.update(SIZES["S"] | dict(depth=DEPTH, dtype="float32", remat="none"))
    config.model.thinking.update(layers=(LAYER,), rank=32, dispatch="dense", **thinking)
    config.train.update(trainable="thinking", batch_size=8, deep_supervision=deep_supervision)
    config.init.base = "somewhere"
    program = trace(config, "train", create_mesh(ONE_DEVICE, jax.devices()[:1]))
    return config_lib.build(config).model, program.traced.jaxpr


@pytest.mark.parametrize(
    "fields",
    [
        dict(latent_steps=1),
        dict(latent_steps=5),
        dict(latent_steps=2, base_input="recursed"),
        dict(latent_steps=3, base_every_step=True),
    ],
)
def test_no_gradient_of_the_base_and_none_below_the_thinking_block(fields):
    model, jaxpr = step_of(experts=1, **fields)
    # The backward pass computes the scores of every attention again.
    attentions = DEPTH - LAYER + model.thinking.latent_steps - 1
    wanted = train_step_flops(model, 8, "thinking") + 8 * attentions * 2 * 256**2 * 384
    # Not exactly equal: the embeddings have no gradient, so the adaLN layers need none.
    assert traced_flops(jaxpr) == pytest.approx(wanted, rel=3e-3)


def test_deep_supervision_costs_the_rest_of_the_model_for_each_latent_step():
    model, jaxpr = step_of(deep_supervision=1.0, experts=1, latent_steps=3)
    wanted = train_step_flops(model, 8, "thinking", deep_supervision=True)
    assert wanted > 1.5 * train_step_flops(model, 8, "thinking")
    # Not counted: the blocks below the thinking block run once more, and the backward pass computes
    # the scores of every attention again.
    later = DEPTH - LAYER - 1
    attentions = DEPTH - LAYER + 2 + 2 * later
    again = sum(model.block_flops(layer) for layer in range(LAYER))
    wanted += 8 * (again + attentions * 2 * 256**2 * 384)
    assert traced_flops(jaxpr) == pytest.approx(wanted, rel=1e-2)


def test_nothing_is_stored_for_the_blocks_below_the_thinking_block():
    _, jaxpr = step_of(experts=2, latent_steps=2)
    outputs = {scan.params["length"]: scan.outvars for scan in scans(jaxpr)[:2]}
    # Blocks 0 to 2 return the tokens only; blocks 4 and 5 also what their gradient needs.
    assert [var.aval.shape for var in outputs[LAYER]] == [(8, 256, 384)]
    assert len(outputs[DEPTH - LAYER - 1]) > 1


def test_a_further_latent_step_does_not_project_the_text_again():
    config = tiny_shapes()
    config.model.thinking.update(
        layers=(0,), experts=3, rank=4, gate_width=8, gate_inputs=("token",), dispatch="dense"
    )
    built = config_lib.build(config).model
    model = build_model(built)
    batch, tokens, text, width = 2, 16, built.text_tokens, 16
    arguments = [
        jax.ShapeDtypeStruct((batch, 8, 8, built.channels), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.float32),
        model.example_condition(batch),
    ]
    params = jax.eval_shape(model.init, jax.random.key(0), *arguments)

    def flops(latent_steps):
        options = ThinkingOptions(latent_steps=latent_steps)
        return traced_flops(jax.make_jaxpr(model.apply)(params, *arguments, options).jaxpr)

    experts, rank, gate = 3, 4, 8
    dense = 2 * experts * rank * tokens * width * (3 + 3)
    choice = 2 * tokens * gate * (width + experts)
    attention = 4 * (tokens + text) ** 2 * width
    assert flops(4) - flops(3) == batch * (dense + choice + attention)


def scans(jaxpr):
    """Return the `scan` equations over blocks of a jaxpr, in order."""
    found = []
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "scan":
            found += [equation] if equation.params["length"] > 1 else []
        else:
            for value in equation.params.values():
                found += scans(value) if hasattr(value, "jaxpr") or hasattr(value, "eqns") else []
    return found
