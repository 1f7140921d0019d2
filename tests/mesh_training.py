"""Train small models on meshes and write their losses and samples.

    python mesh_training.py FILE.npz DEVICES KIND:MESH…

DEVICES is the number of virtual devices; a case is for example dit:fsdp. Started by a launcher, it
is one of several processes.
"""

import functools
import os
import sys

from virtual_devices import xla_flags

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = xla_flags(devices=int(sys.argv[2]))

import jax
import numpy as np

from tp_jax import config as config_lib
from tp_jax.models import build_model
from tp_jax.models.parameters import init_params
from tp_jax.parallel.axes import ONE_DEVICE
from tp_jax.parallel.mesh import create_mesh
from tp_jax.parallel.processes import join_processes
from tp_jax.parallel.sharding import batch_sharding, tree_shardings
from tp_jax.sampling.generator import Generator
from tp_jax.train.loss import make_gradient
from tp_jax.train.optimizer import make_optimizer
from tp_jax.train.state import make_state
from tp_jax.train.step import jit_train_step

STEPS, BATCH = 20, 8
# Mesh axes on eight devices and the dispatch to use. `uneven` has fewer experts than devices and
# rematerializes activations.
MESHES = {
    "one": ({}, "dense"),
    "data": (dict(data=8), "grouped"),
    "fsdp": (dict(fsdp=8), "dense"),
    "tensor": (dict(tensor=2, data=4), "dense"),
    "expert": (dict(expert=4, data=2), "expert_parallel"),
    "weights": (dict(expert=4, data=2), "grouped"),
    "uneven": (dict(expert=8), "expert_parallel"),
    "mixed": (dict(fsdp=2, tensor=2, expert=2), "expert_parallel"),
    "slices": (dict(slices=2, fsdp=2, expert=2), "expert_parallel"),
}


def small_config(kind: str):
    """Config of a `dit` or `mmdit`.

    `own` is a DiT with separate experts for each latent step, and `ponder` one whose tokens halt.
    """
    config = config_lib.default("mmdit" if kind == "mmdit" else "dit", "flow")
    config.model.update(image_size=8, patch=2, depth=3, width=16, heads=2)
    config.model.thinking.update(layers=(1,), experts=4, rank=2, gate_width=8)
    config.model.thinking.share_across_steps = kind != "own"
    if kind == "ponder":
        config.model.thinking.update(halting="ponder", ponder_prior=0.45, latent_steps=3)
    if kind != "mmdit":
        config.model.update(channels=1, num_classes=10)
    else:
        config.model.update(
            channels=2, text_width=6, pooled_width=5, text_tokens=3, max_grid=4, base_grid=2,
            qk_norm=True, dual_attention_layers=1,
        )  # fmt: skip
    config.train.update(steps=STEPS, batch_size=BATCH, ema_decay=0.9)
    config.optimizer.update(learning_rate=1e-3, clip_norm=1.0)
    config.sampling.update(sampler="euler", steps=3, guidance_scale=1.5)
    return config


def condition_of(model, rng):
    """Class labels, or random text embeddings."""

    def draw(leaf):
        if leaf.dtype == np.int32:
            return np.arange(BATCH, dtype=np.int32)
        return rng.normal(size=leaf.shape).astype(np.float32)

    return jax.tree.map(draw, model.example_condition(BATCH))


@functools.cache
def first_state(kind: str):
    """Return a state on the host with perturbed parameters."""
    config = small_config(kind)
    model = build_model(config_lib.build(config).model)
    optimizer = make_optimizer(config.optimizer, STEPS)
    rng = np.random.default_rng(0)
    # At initialization the experts add nothing.
    params = jax.tree.map(
        lambda leaf: (leaf + 0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype),
        jax.device_get(jax.jit(lambda: init_params(model, 0))()),
    )
    return jax.device_get(make_state(params, optimizer, "all"))


def run(kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Train; return loss and gradient norm of each step [20, 2], and final samples [8, 8, 8, C]."""
    sizes, dispatch = MESHES[name]
    config = small_config(kind)
    config.model.thinking.dispatch = dispatch
    config.model.remat = "full" if name == "uneven" else "none"
    devices = jax.devices()[:1] if name == "one" else jax.devices()
    mesh = create_mesh(ONE_DEVICE | sizes, devices)
    built = config_lib.build(config)
    model, optimizer = build_model(built.model), make_optimizer(config.optimizer, STEPS)
    state = first_state(kind)
    shardings = tree_shardings(state, mesh)
    state = jax.device_put(state, shardings)
    gradient = make_gradient(model, built.objective, config)
    step = jit_train_step(gradient, optimizer, config, mesh, shardings)
    rng = np.random.default_rng(0)
    shape = (BATCH, 8, 8, config.model.channels)
    condition = condition_of(model, rng)
    batch = {
        "x": rng.normal(size=shape).astype(np.float32),
        "index": np.arange(BATCH, dtype=np.int32),
        "condition": condition,
    }
    batch, losses = jax.device_put(batch, batch_sharding(mesh)), []
    for _ in range(STEPS):
        with jax.set_mesh(mesh):
            state, metrics = step(state, batch)
        losses.append(jax.device_get([metrics["loss"], metrics["grad_norm"]]))
    generator = Generator(model, built.objective, built.sampler, mesh, BATCH)
    return np.array(losses), next(generator.batches(state.params, condition, seed=0))


if __name__ == "__main__":
    join_processes()
    found = {}
    for case in sys.argv[3:]:
        losses, samples = run(*case.split(":"))
        found |= {f"{case}/losses": losses, f"{case}/samples": samples}
        print(case, *losses[-1], flush=True)
    if jax.process_index() == 0:
        np.savez(sys.argv[1], **found)
