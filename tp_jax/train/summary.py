"""The lines that a run prints when it starts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.parallel.sharding import device_bytes
from tp_jax.thinking.dispatch import get_dispatch
from tp_jax.train.setup import Checked, Program


def start_lines(checked: Checked, program: Program, first: int) -> list[str]:
    """Devices, data, model, memory, and what changed since the last start.

    Args:
      first: train_step of the checkpoint that the run goes on from, or 0.
    """
    lines = [_devices(checked), _data(checked), _model(checked, program)]
    if checked.config.model.thinking.layers:
        lines.append(_dispatch(checked))
    lines.append(_memory(checked, program))
    lines += [f"changed since the last start: {change}" for change in checked.changes]
    if first:
        lines.append(f"going on from checkpoint {first}")
    lines.append("compiling the first step …")
    return lines


def _devices(checked: Checked) -> str:
    shape = " × ".join(f"{axis} {size}" for axis, size in checked.model.mesh.shape.items())
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    return f"tp_jax in {checked.model.workdir}: {device}, mesh {shape}"


def _data(checked: Checked) -> str:
    batch_size = checked.config.train.batch_size
    return f"data {checked.config.data.source}: {checked.images:,} images, batch {batch_size}"


def _model(checked: Checked, program: Program) -> str:
    config, params = checked.config, program.abstract.params

    def millions(tree: Any) -> str:
        return f"{sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) / 1e6:,.2f} M"

    thinking = config.model.thinking
    return (
        f"model {config.model.kind}: base {millions(params['base'])} parameters, thinking "
        f"{millions(params.get('thinking', {}))} in blocks {thinking.layers} "
        f"(M={thinking.experts}, T={thinking.latent_steps}, r={thinking.rank}), "
        f"training {config.train.trainable}"
    )


def _dispatch(checked: Checked) -> str:
    config, model = checked.config, checked.model.built.model
    batch = config.train.batch_size // config.train.accumulate
    with jax.set_mesh(checked.model.mesh):
        dispatch = get_dispatch(
            model.thinking, batch, model.tokens, model.width, jnp.dtype(model.dtype)
        )
    return dispatch.describe()


def _memory(checked: Checked, program: Program) -> str:
    sizes = device_bytes(program.abstract, program.shardings)
    largest = ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in list(sizes.items())[:3])
    host = ", the last two on its host" if checked.config.train.offload else ""
    return (
        f"state: {sum(sizes.values()) / 2**20:,.1f} MiB for each device (parameters, average, "
        f"optimizer{host}); largest: {largest}"
    )
