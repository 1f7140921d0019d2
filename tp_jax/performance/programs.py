"""The train step and the sampling of a config, traced for the devices of any mesh."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from tp_jax import config as config_lib
from tp_jax.data import abstract_batch
from tp_jax.diffusion import SamplerConfig
from tp_jax.diffusion.samplers import SAMPLERS
from tp_jax.models import build_model
from tp_jax.models.attention import check_attention
from tp_jax.models.flops import forward_flops, train_step_flops
from tp_jax.models.parameters import abstract_params
from tp_jax.parallel.mesh import check_batch_size
from tp_jax.parallel.sharding import batch_sharding, device_bytes, tree_shardings
from tp_jax.sampling.generator import Generator
from tp_jax.train.setup import build, check_batches
from tp_jax.train.state import split_trainable

JOBS = ("train", "sample")


@dataclasses.dataclass(frozen=True)
class TracedProgram:
    """A program to compile.

    Attributes:
      traced: the traced program, as jax returns it.
      model_flops: FLOPs of one run on all devices, computed from the model's sizes, without
        recomputation.
      held: bytes of the inputs on one device, by name ("parameters", "average", "optimizer",
        "batch").
      changed: bytes of `held` that the program overwrites.
      on_host: bytes per device that stay in host memory.
    """

    traced: jax.stages.Traced
    model_flops: float
    held: dict[str, int]
    changed: int = 0
    on_host: int = 0


def trace(config: ConfigDict, job: str, mesh: Mesh) -> TracedProgram:
    """Trace one train step, or the sampling of one batch of `config.train.batch_size` images.

    Args:
      config: the config.
      job: one of `JOBS`.
      mesh: the mesh; its devices may be those of a topology.

    Raises:
      UserError: the config is wrong, or it doesn't fit the mesh.
    """
    built = config_lib.build(config)
    model = build_model(built.model)
    batch_size = config.train.batch_size
    check_batch_size(mesh, "config.train.batch_size", batch_size)
    check_attention(built.model, mesh)
    if job == "train":
        return _trace_train(config, built, model, mesh)
    return _trace_sample(config, built, model, mesh)


def _trace_train(
    config: ConfigDict, built: config_lib.Built, model: nn.Module, mesh: Mesh
) -> TracedProgram:
    batch_size, trainable = config.train.batch_size, config.train.trainable
    check_batches(config, mesh)
    program = build(config, model, built.objective, mesh)
    state, shardings, step = program.abstract, program.shardings, program.step
    offload = config.train.offload
    batch = abstract_batch(config, model)
    with jax.set_mesh(mesh):
        traced = step.trace(state, batch)
    trained, _ = split_trainable(state.params, trainable)
    cut, _ = split_trainable(shardings.params, trainable)
    memory = {
        "average": _bytes_per_device(state.ema, shardings.ema),
        "optimizer": _bytes_per_device(state.opt_state, shardings.opt_state),
    }
    rows = batch_size * mesh.shape["tensor"] // mesh.size
    return TracedProgram(
        traced,
        train_step_flops(
            built.model,
            batch_size,
            trainable,
            deep_supervision=config.train.deep_supervision > 0,
        ),
        held={
            "parameters": _bytes_per_device(state.params, shardings.params),
            **({} if offload else memory),
            "batch": rows
            * sum(leaf.size * leaf.dtype.itemsize // batch_size for leaf in jax.tree.leaves(batch)),
        },
        changed=_bytes_per_device(trained, cut) + (0 if offload else sum(memory.values())),
        on_host=sum(memory.values()) if offload else 0,
    )


def _trace_sample(
    config: ConfigDict, built: config_lib.Built, model: nn.Module, mesh: Mesh
) -> TracedProgram:
    batch_size = config.train.batch_size
    generator = Generator(model, built.objective, built.sampler, mesh, batch_size)
    shapes = abstract_params(model)
    shardings = tree_shardings(shapes, mesh)
    cut = batch_sharding(mesh)

    def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(placed, shapes, shardings)
    index = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    condition = jax.tree.map(lambda leaf: placed(leaf, cut), model.example_condition(batch_size))
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        traced = generator.compiled().trace(params, key, index, condition)
    flops = predictions(built.sampler) * batch_size * forward_flops(built.model)
    return TracedProgram(traced, flops, {"parameters": _bytes_per_device(shapes, shardings)})


def predictions(sampler: SamplerConfig) -> int:
    """Return how often sampling computes the model's prediction of a sample."""
    found = sampler.steps * SAMPLERS[sampler.sampler].predictions_per_step
    return found * (1 if sampler.guidance_scale == 1 else 2)


def _bytes_per_device(tree: Any, shardings: Any) -> int:
    return sum(device_bytes(tree, shardings).values())
