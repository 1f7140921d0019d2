"""One update: gradient, optimizer, EMA. Pure, to be jitted with the state donated.

B samples in the global batch, A micro-batches.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tp_jax.diffusion import Objective
from tp_jax.models.dit import DiT
from tp_jax.models.parameters import Params
from tp_jax.parallel.sharding import batch_sharding, replicated
from tp_jax.train.frames_loss import make_frames_gradient
from tp_jax.train.loss import Gradient, Metrics, make_gradient
from tp_jax.train.state import TrainState, on_device, split_trainable

TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


class JittedStep(Protocol):
    """A jitted `TrainStep`: to be called, or traced for devices that aren't here."""

    def __call__(self, state: TrainState, batch: Any, /) -> tuple[TrainState, Metrics]:
        """The step."""
        ...

    def trace(self, state: Any, batch: Any, /) -> jax.stages.Traced:
        """The step of abstract arrays."""
        ...


def choose_gradient(model: nn.Module, objective: Objective, config: ConfigDict) -> Gradient:
    """The gradient for what a model takes."""
    if isinstance(model, DiT) and model.config.takes == "frame" and _has_frames_before(model):
        return make_frames_gradient(model, objective, config)
    return make_gradient(model, objective, config)


def _has_frames_before(model: DiT) -> bool:
    """With one latent step there are no frames before the last one."""
    return model.config.thinking.latent_steps > 1


def make_train_step(
    gradient: Gradient, optimizer: optax.GradientTransformation, config: ConfigDict
) -> TrainStep:
    """(state, batch {"x": [B, H, W, C], "index": [B], "condition": …}) -> (state, metrics).

    "index" is each sample's row in this update's global batch.
    """
    accumulate, trainable = config.train.accumulate, config.train.trainable

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        trained, frozen = split_trainable(state.params, trainable)

        def gradient_of(batch: Any) -> tuple[Any, Metrics]:
            return gradient(trained, frozen, batch, state.train_step)

        if accumulate == 1:
            grads, metrics = gradient_of(batch)
        else:
            # Every A-th sample, so that a micro-batch is spread over the devices as a batch is.
            parts = jax.tree.map(
                lambda leaf: leaf.reshape(-1, accumulate, *leaf.shape[1:]).swapaxes(0, 1),
                batch,
            )

            def add(total: Any, part: Any) -> tuple[Any, None]:
                new = gradient_of(part)
                return jax.tree.map(lambda a, b: a + b / accumulate, total, new), None

            shapes = jax.eval_shape(gradient_of, jax.tree.map(lambda leaf: leaf[0], parts))
            zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            (grads, metrics), _ = jax.lax.scan(add, zero, parts)

        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        trained = cast(Params, optax.apply_updates(trained, updates))
        ema = optax.incremental_update(trained, state.ema, 1 - config.train.ema_decay)
        metrics["grad_norm"] = optax.tree.norm(grads)
        state = TrainState(state.train_step + 1, trained | frozen, cast(Params, ema), opt_state)
        return state, metrics

    return train_step


def jit_train_step(
    gradient: Gradient,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
    shardings: TrainState,
) -> JittedStep:
    """`make_train_step`, jitted with the state donated; to be called under `jax.set_mesh`."""
    step = make_train_step(gradient, optimizer, config)

    def brought(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return step(on_device(state, shardings), batch)

    return jax.jit(
        brought if config.train.offload else step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
