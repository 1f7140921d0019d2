"""What a train step of the thinking layers alone computes and stores."""

import runpy

import jax
import pytest

from tp_jax import config as config_lib
from tp_jax.models.dit_config import SIZES
from tp_jax.models.flops import train_step_flops
from tp_jax.parallel.axes import ONE_DEVICE
from tp_jax.parallel.mesh import create_mesh
from tp_jax.performance.programs import trace
from tp_jax.performance.traced_flops import traced_flops

DEPTH, LAYER = 6, 3


def step_of(**thinking):
    """Trace a train step of block 3 of a DiT-S/2 with six blocks, and return (config, jaxpr)."""
    config = runpy.run_path("configs/imagenet256.py")["get_config"]("scratch")
    config.model.update(SIZES["S"] | dict(depth=DEPTH, dtype="float32", remat="none"))
    config.model.thinking.update(layers=(LAYER,), rank=32, dispatch="dense", **thinking)
    config.train.update(trainable="thinking", batch_size=8)
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


def test_nothing_is_stored_for_the_blocks_below_the_thinking_block():
    _, jaxpr = step_of(experts=2, latent_steps=2)
    outputs = {scan.params["length"]: scan.outvars for scan in scans(jaxpr)[:2]}
    # Blocks 0 to 2 return the tokens only; blocks 4 and 5 also what their gradient needs.
    assert [var.aval.shape for var in outputs[LAYER]] == [(8, 256, 384)]
    assert len(outputs[DEPTH - LAYER - 1]) > 1


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
