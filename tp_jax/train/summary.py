"""What a run says when it starts."""

import jax
import numpy as np

from tp_jax.thinking.dispatch import get_dispatch


def _start_lines(
    config, model, workdir, source, params_shapes, mesh, sizes, first, changes
) -> list[str]:
    def millions(tree):
        return f"{sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) / 1e6:,.2f} M"

    thinking = config.model.thinking
    shape = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    device = jax.devices()[0].device_kind
    lines = [
        f"tp_jax in {workdir}: {jax.device_count()} × {device}, mesh {shape}",
        f"data {config.data.source}: {len(source.records):,} images, batch "
        f"{config.train.batch_size}",
        f"model {config.model.kind}: base {millions(params_shapes['base'])} parameters, thinking "
        f"{millions(params_shapes.get('thinking', {}))} in blocks {thinking.layers} "
        f"(M={thinking.experts}, T={thinking.latent_steps}, r={thinking.rank}), "
        f"training {config.train.trainable}",
    ]
    if thinking.layers:
        batch = config.train.batch_size // config.train.accumulate
        with jax.set_mesh(mesh):
            dispatch = get_dispatch(model.thinking, batch, model.tokens, model.width, model.dtype)
        lines.append(dispatch.describe())
    largest = ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in list(sizes.items())[:3])
    host = ", the last two on its host" if config.train.offload else ""
    lines.append(
        f"state: {sum(sizes.values()) / 2**20:,.1f} MiB for each device (parameters, average, "
        f"optimizer{host}); largest: {largest}"
    )
    lines += [f"changed since the last start: {change}" for change in changes]
    if first:
        lines.append(f"going on from checkpoint {first}")
    lines.append("compiling the first step …")
    return lines
