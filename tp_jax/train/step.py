"""The train step: gradient, optimizer update and EMA, as a pure function and jitted.

Axes: B samples in the global batch, A micro-batches.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tp_jax.models.parameters import Params
from tp_jax.parallel.mesh import deterministic_options
from tp_jax.parallel.sharding import batch_sharding, replicated
from tp_jax.train.loss import Gradient, Metrics
from tp_jax.train.state import TrainState, split_trainable, to_device_memory

TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


class JittedStep(Protocol):
    """A jitted `TrainStep`, which can also be traced with abstract arrays for ahead-of-time use."""

    def __call__(self, state: TrainState, batch: Any, /) -> tuple[TrainState, Metrics]:
        """Run the step. The arrays of `state` are donated and can't be used afterwards."""
        ...

    def trace(self, state: Any, batch: Any, /) -> jax.stages.Traced:
        """Trace the step for the shapes and dtypes of `state` and `batch`."""
        ...


def make_train_step(
    gradient: Gradient, optimizer: optax.GradientTransformation, config: ConfigDict
) -> TrainStep:
    """Make the train step (state, batch) -> (state, metrics).

    The batch is {"x": [B, H, W, C], "index": [B], "condition": …}; "index" is each sample's row in
    the global batch. With `config.train.accumulate` = A, the gradients of A micro-batches are
    averaged.
    """
    accumulate, trainable = config.train.accumulate, config.train.trainable

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        trained, frozen = split_trainable(state.params, trainable)

        def gradient_of(batch: Any) -> tuple[Any, Metrics]:
            return gradient(trained, frozen, batch, state.train_step)

        if accumulate == 1:
            grads, metrics = gradient_of(batch)
        else:
            # A micro-batch takes every A-th sample, so that it is sharded evenly like the batch.
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
    """Jit `make_train_step` with the state donated. Call the result under `jax.set_mesh(mesh)`.

    With `config.train.offload`, the step first copies the EMA and the optimizer state from host
    memory to the devices. With `config.train.deterministic`, it gives the same bits in every run.
    """
    step = make_train_step(gradient, optimizer, config)

    def offloaded_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return step(to_device_memory(state, shardings), batch)

    return jax.jit(
        offloaded_step if config.train.offload else step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=deterministic_options(mesh) if config.train.deterministic else None,
    )
