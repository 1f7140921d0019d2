"""Seeded inputs of one thinking layer; run it by the package and by the slow reference.

Axes: B samples, N vision tokens, L text tokens, D width.
"""

import jax
import jax.numpy as jnp
import numpy as np
from thinking_reference import layer_norm, thinking_attention

from tp_jax.models.attention import attention, split_heads
from tp_jax.thinking import ThinkingConfig
from tp_jax.thinking.gate import GateRandomness, draw_routing
from tp_jax.thinking.layer import AttentionInputs, Conditioning, init_thinking_layer
from tp_jax.thinking.recursion import think

B, N, L, D, HEADS = 2, 5, 3, 8, 2
LAYER = 7


def normal(seed, *shape):
    # Sampled by NumPy, because jax.random compiles a program for every shape.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def layer_inputs(config, text):
    """Arguments of a layer. Every parameter is random, also the experts' second matrix B."""
    shapes = jax.eval_shape(lambda key: init_thinking_layer(key, config, D), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    params = tree.unflatten([0.5 * normal(i, *x.shape) for i, x in enumerate(leaves)])
    params["norm"]["scale"] += 1
    inputs = {
        "params": params,
        "vision": normal(20, B, N, D),
        "unmodulated": normal(27, B, N, D),
        "scale": 0.5 * normal(21, B, D),
        "shift": normal(22, B, D),
        "time": normal(23, B, D),
        "condition": normal(24, B, D),
        "kernel": 0.5 * normal(25, D, 3, D),
    }
    return inputs | ({"text": normal(26, B, L, 3, D)} if text else {})


def our_layer(inputs, config, noise=None, watch=lambda qkv: None, **options):
    """Run the package's layer as a transformer block does; `watch` sees what attention gets."""
    text = inputs.get("text")

    def attend(qkv):
        watch(qkv)
        if text is None:
            return attention(split_heads(qkv, HEADS), HEADS), None
        out = attention(split_heads(jnp.concatenate([qkv, text], 1), HEADS), HEADS)
        return out[:, :N], out[:, N:]

    block = AttentionInputs(
        inputs["vision"],
        inputs["unmodulated"],
        inputs["scale"],
        inputs["shift"],
        Conditioning(inputs["time"], inputs["condition"]),
        lambda x: jnp.einsum("bnd,dpe->bnpe", x, inputs["kernel"]),
        attend,
    )
    return think(
        inputs["params"],
        block,
        config=config,
        draws=draw_routing(
            noise, config, LAYER, options.get("latent_steps") or config.latent_steps, N
        ),
        **options,
    )


def reference_layer(inputs, config, noise=None, latent_steps=None, halts=None):
    """Run the slow reference with the same random draws; `halts` says which tokens halt."""
    steps = latent_steps or config.latent_steps
    params = dict(inputs["params"])
    if "step_experts" in params:
        params["experts"] = params.pop("step_experts")
    drawn, draws = draw_routing(noise, config, LAYER, steps, N), {}
    if drawn is not None:
        draws["random_experts" if config.gate == "random" else "gumbel"] = drawn
    text = inputs.get("text")
    return thinking_attention(
        inputs["vision"],
        inputs["scale"],
        inputs["shift"],
        inputs["time"],
        inputs["condition"],
        params,
        lambda x: tuple(x @ inputs["kernel"][:, i] for i in range(3)),
        text=None if text is None else tuple(text[:, :, i] for i in range(3)),
        heads=HEADS,
        latent_steps=steps,
        temperature=config.temperature,
        gate=config.gate,
        gate_inputs=config.gate_inputs,
        gate_token=config.gate_token,
        unmodulated=inputs["unmodulated"],
        modulate=config.modulate,
        base_input=config.base_input,
        base_every_step=config.base_every_step,
        share_across_steps=config.share_across_steps,
        halts=halts,
        **draws,
    )


def gate_randomness(train=True):
    return GateRandomness(jax.random.key(3), jnp.array([4, 9]), train)


def small_thinking(**fields):
    return ThinkingConfig(**dict(experts=3, rank=2, latent_steps=3, gate_width=4) | fields)


def halting_thinking(**fields):
    return small_thinking(**dict(halting="threshold", halting_epsilon=0.0) | fields)


def halting_probability(params, token):
    """λ of one token ã [D]."""
    logit = layer_norm(token, params["norm"]) @ params["halt"]["kernel"] + params["halt"]["bias"][0]
    return 1 / (1 + jnp.exp(-logit))


def assert_close(actual, wanted, tolerance):
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    np.testing.assert_allclose(actual, wanted, atol=tolerance * max(1, np.abs(wanted).max()))
