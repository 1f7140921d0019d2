"""The training state: what is trained, its average, and the optimizer's memory."""

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
    """Everything that an update changes.

    Attributes:
      train_step: int32 scalar, updates done.
      params: {"base", "thinking"}, float32.
      ema: moving average of what is trained, float32.
      opt_state: the optimizer's.
    """

    train_step: jax.Array
    params: Params
    ema: Params
    opt_state: optax.OptState


def split_trainable(params: Params, trainable: str) -> tuple[Params, Params]:
    """(trained, frozen) parts of {"base", "thinking"}; together they are the whole."""
    trained = {name: part for name, part in params.items() if trainable in ("all", name)}
    frozen = {name: part for name, part in params.items() if name not in trained}
    return trained, frozen


def make_state(
    params: Params, optimizer: optax.GradientTransformation, trainable: str
) -> TrainState:
    """A fresh state: the EMA starts at the parameters themselves."""
    trained, _ = split_trainable(params, trainable)
    # A copy, because the state is donated and an array can be donated only once.
    ema = jax.tree.map(jnp.copy, trained)
    return TrainState(jnp.int32(0), params, ema, optimizer.init(trained))


def abstract_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    trainable: str,
    mesh: Mesh,
    offload: bool = False,
) -> tuple[TrainState, TrainState]:
    """Shapes and dtypes of a fresh state, and the sharding of each leaf.

    Args:
      offload: the average and the optimizer's state stay in the memory of the hosts.
    """
    shapes = jax.eval_shape(
        lambda params: make_state(params, optimizer, trainable), abstract_params(model)
    )
    shardings = tree_shardings(shapes, mesh)
    if offload:
        shardings = shardings.replace(
            ema=_in_memory(shardings.ema, "pinned_host"),
            opt_state=_in_memory(shardings.opt_state, "pinned_host"),
        )
    return shapes, shardings


def _in_memory(shardings: Any, kind: str) -> Any:
    return jax.tree.map(lambda sharding: sharding.with_memory_kind(kind), shardings)


def on_device(tree: Any, shardings: Any) -> Any:
    """A tree of arrays with these shardings, brought to the devices' memory where it isn't."""
    return jax.device_put(tree, _in_memory(shardings, "device"))
