"""The training state: parameters, their EMA, and the optimizer state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from tp_jax.models.parameters import Params, abstract_params
from tp_jax.parallel.sharding import tree_shardings


@struct.dataclass
class TrainState:
    """Everything that a train step changes.

    Attributes:
      train_step: int32 scalar, the number of updates done.
      params: {"base", "thinking"}, float32.
      ema: exponential moving average of the trained parts of `params`, float32.
      opt_state: the optimizer state of the trained parts.
    """

    train_step: jax.Array
    params: Params
    ema: Params
    opt_state: optax.OptState


def split_trainable(params: Params, trainable: str) -> tuple[Params, Params]:
    """Split parameters {"base", "thinking"} into (trained, frozen).

    Args:
      params: the parameters, or a tree with the same top level.
      trainable: `config.train.trainable`: "all", or the one part that is trained.
    """
    trained = {name: part for name, part in params.items() if trainable in ("all", name)}
    frozen = {name: part for name, part in params.items() if name not in trained}
    return trained, frozen


def make_state(
    params: Params, optimizer: optax.GradientTransformation, trainable: str
) -> TrainState:
    """Make the initial state: train step 0, and an EMA equal to the trained parameters."""
    trained, _ = split_trainable(params, trainable)
    # Copy: the train step donates the state, and a buffer can be donated only once.
    ema = jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.int32(0), params, ema, optimizer.init(trained))


def abstract_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    trainable: str,
    mesh: Mesh,
    offload: bool = False,
) -> tuple[TrainState, TrainState]:
    """Return the shapes and dtypes of an initial state, and the sharding of each leaf.

    Args:
      model: the model.
      optimizer: its optimizer.
      trainable: `config.train.trainable`.
      mesh: the mesh.
      offload: keep the EMA and the optimizer state in pinned host memory.
    """
    shapes = jax.eval_shape(
        lambda params: make_state(params, optimizer, trainable), abstract_params(model)
    )
    shardings = tree_shardings(shapes, mesh)
    if offload:
        shardings = shardings.replace(
            ema=_with_memory_kind(shardings.ema, "pinned_host"),
            opt_state=_with_memory_kind(shardings.opt_state, "pinned_host"),
        )
    return shapes, shardings


def _with_memory_kind(shardings: Any, kind: str) -> Any:
    return jax.tree.map(lambda sharding: sharding.with_memory_kind(kind), shardings)


def to_device_memory(tree: Any, shardings: Any) -> Any:
    """Copy the arrays of a tree that are in host memory to device memory, with these shardings."""
    return jax.device_put(tree, _with_memory_kind(shardings, "device"))
