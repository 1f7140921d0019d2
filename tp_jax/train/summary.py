"""The lines that training prints when it starts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from tp_jax.files.hub import local
from tp_jax.parallel.sharding import device_bytes
from tp_jax.thinking.dispatch import get_dispatch
from tp_jax.train.setup import Checked, Program
from tp_jax.workdir.changes import as_text
from tp_jax.workdir.record import CONFIG, read_config

# Number of class names in the log.
NAMES_SHOWN = 5


def start_lines(checked: Checked, program: Program, first: int) -> list[str]:
    """Return lines on devices, data, model, parameters, memory and changed config fields.

    Args:
      checked: the checked parts of the run.
      program: the train step and the layout of its state.
      first: train_step of the checkpoint that the run resumes from, or 0.
    """
    lines = [_devices(checked), _data(checked), *_model(checked, program)]
    lines.append(_determinism(checked))
    # A run that resumes doesn't read the base again.
    if checked.config.init.base and not first:
        lines.append(_base(checked))
    if checked.config.model.thinking.layers:
        lines.append(_dispatch(checked))
    lines.append(_memory(checked, program))
    lines += [f"changed since the last start: {as_text(change)}" for change in checked.changes]
    if first:
        lines.append(f"resuming from the checkpoint of train step {first}")
    else:
        lines.append(_parameters(program))
    lines.append("compiling the first step …")
    return lines


def markdown(config: ConfigDict) -> str:
    """Return a config as a code block, for TensorBoard."""
    return f"```\n{config}```"


def _parameters(program: Program) -> str:
    # The values don't exist yet, so there are no statistics of them.
    return parameter_overview.get_parameter_overview(program.abstract.params, include_stats=False)


def _devices(checked: Checked) -> str:
    shape = " × ".join(f"{axis} {size}" for axis, size in checked.model.mesh.shape.items())
    device = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    return f"tp_jax in {checked.model.workdir}: {device}, mesh {shape}"


def _data(checked: Checked) -> str:
    config, names = checked.config, checked.class_names
    shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
    classes = f" in {len(names)} classes ({shown})" if names else ""
    images = f"{checked.images:,} images{classes}"
    if checked.held_out:
        images += f", {checked.held_out:,} of them held out for validation"
    return f"data {config.data.source}: {images}, batch {config.train.batch_size}"


def _base(checked: Checked) -> str:
    """Describe the base that the run starts from."""
    path, trained = checked.config.init.base, checked.config.train.trainable
    frozen = (
        "frozen" if trained == "thinking" else f"trained too (config.train.trainable={trained!r})"
    )
    folder = local(path)
    if not (folder / CONFIG).exists():
        return f"base: {path}, {frozen}"
    theirs, ours = read_config(folder), checked.config
    notes = "; its own thinking layers are not used" if theirs.model.thinking.layers else ""
    held_out = [(each.validation.fraction, each.validation.seed) for each in (theirs, ours)]
    if ours.validation.fraction and held_out[0] != held_out[1]:
        notes += "; it was trained on records that this run holds out for validation"
    return f"base: {path}, {frozen}{notes}"


def _model(checked: Checked, program: Program) -> list[str]:
    config, params = checked.config, program.abstract.params

    def millions(tree: Any) -> str:
        return f"{sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) / 1e6:,.2f} M"

    thinking, base = config.model.thinking, millions(params["base"])
    lines = [f"model {config.model.kind}: {base} parameters; training {config.train.trainable}"]
    if not thinking.layers:
        return [*lines, "no thinking"]
    model = checked.model.built.model
    drawn = ", drawn for each update" if len(model.trained_latent_steps) > 1 else ""
    blocks, size = ", ".join(map(str, thinking.layers)), millions(params["thinking"])
    return [
        *lines,
        f"thinking in blocks {blocks}: {size} parameters, M={thinking.experts} experts, "
        f"T={model.trained_latent_steps_text} latent steps{drawn}, rank {thinking.rank}",
    ]


def _dispatch(checked: Checked) -> str:
    config, model = checked.config, checked.model.built.model
    batch = config.train.batch_size // config.train.accumulate
    with jax.set_mesh(checked.model.mesh):
        dispatch = get_dispatch(
            model.thinking, batch, model.tokens, model.width, jnp.dtype(model.dtype)
        )
    return dispatch.describe()


def _determinism(checked: Checked) -> str:
    device = checked.model.mesh.devices.flat[0]
    if device.platform != "gpu":
        return f"a resumed run ends with the same bits on {device.device_kind}, on the same mesh"
    if checked.config.train.deterministic:
        return "a resumed run ends with the same bits: config.train.deterministic=True, slower"
    return (
        "a resumed run may differ in the last bits: the fastest kernels add in a varying order; "
        "config.train.deterministic=True excludes them"
    )


def _memory(checked: Checked, program: Program) -> str:
    sizes = device_bytes(program.abstract, program.shardings)
    name, size = next(iter(sizes.items()))
    largest = f"{name} {size / 2**20:,.2f} MiB"
    host = "; EMA and optimizer are in host memory" if checked.config.train.offload else ""
    return (
        f"state: {sum(sizes.values()) / 2**20:,.1f} MiB per device (parameters, EMA, optimizer"
        f"{host}); largest: {largest}"
    )
