"""One update: loss, gradient, optimizer, EMA. Pure, to be jitted with the state donated.

B samples in the global batch, A micro-batches.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tp_jax.diffusion import Objective
from tp_jax.diffusion.objective import expand
from tp_jax.models.latent_step_frames import decode_latent_steps
from tp_jax.parallel.randomness import sample_keys, stream_key
from tp_jax.parallel.sharding import batch_sharding, replicated
from tp_jax.thinking import RoutingNoise, ThinkingOptions, Thought
from tp_jax.thinking.recursion import balance_loss
from tp_jax.train.state import TrainState, on_device, split_trainable

Metrics = dict[str, jax.Array]


def make_loss(model: nn.Module, objective: Objective, config: ConfigDict) -> Callable:
    """Loss of (params, batch, train_step, moves) -> (scalar, metrics).

    `moves`, where a batch has "frames" [B, T-1, H, W, C], those before x, is how many latent steps
    are taken: the last is to predict the frame after so many moves, and those before decode to the
    frames before. Otherwise it is None.

    Every draw is of (seed, stream, train_step, sample), so neither the mesh nor the number of
    micro-batches changes it.
    """
    dropout = config.train.condition_dropout
    balance_weight = config.model.thinking.balance_weight

    def loss_fn(params, batch, train_step, moves=None) -> tuple[jax.Array, Metrics]:
        x, index, condition = batch["x"], batch["index"], batch["condition"]
        if moves:
            frames = jnp.concatenate([batch["frames"], x[:, None]], axis=1)
            x, before = frames[:, moves - 1], frames[:, : moves - 1]

        def keys(stream):
            return sample_keys(stream_key(config.seed, stream, train_step), index)

        times = objective.sample_times(keys("time"))
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys("noise"))
        dropped = jax.vmap(lambda key: jax.random.uniform(key) < dropout)(keys("dropout"))
        condition = jax.tree.map(
            lambda null, given: jnp.where(expand(dropped, given), null, given),
            model.null_condition(condition),
            condition,
        )
        routing = RoutingNoise(stream_key(config.seed, "routing", train_step), index)
        thoughts: dict[int, Thought] = {}
        decoded: Metrics = {}

        def predict(x_t, timestep):
            inputs = x_t, timestep, condition, ThinkingOptions(routing, latent_steps=moves)
            if moves:
                steps, found = decode_latent_steps(model, params, *inputs)
                error = jnp.square(steps[:-1].swapaxes(0, 1) - before).sum()
                decoded["frames"] = error / max(before.size, 1)
                output = steps[-1]
            else:
                output, found = model.apply({"params": params}, *inputs)
            thoughts.update(found)
            return output

        terms = objective.losses(predict, x, noise, times)
        metrics = {name: value.mean() for name, value in terms.items()} | decoded
        for layer, thought in thoughts.items():
            metrics |= thought_metrics(layer, thought)
        if moves:
            # One latent step has none, and every number of moves is to say the same.
            metrics = {k: v for k, v in metrics.items() if not k.startswith("expert_kept")}
        loss = metrics["loss"]
        if decoded:
            loss += config.navigation.frames_weight * decoded["frames"]
        if balance_weight:
            metrics["balance"] = sum(balance_loss(t) for t in thoughts.values())
            loss += balance_weight * metrics["balance"]
        return loss, metrics

    return loss_fn


def thought_metrics(layer: int, thought: Thought) -> Metrics:
    """Entropy of the gate, tokens that keep their expert, and each expert's share."""
    metrics = {
        f"gate_entropy/layer_{layer}": thought.entropy.mean(),
        f"expert_use/layer_{layer}": thought.expert_use.mean(0),
    }
    if thought.kept.size:
        metrics[f"expert_kept/layer_{layer}"] = thought.kept.mean()
    return metrics


def make_train_step(
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """(state, batch {"x": [B, H, W, C], "index": [B], "condition": …}) -> (state, metrics).

    "index" is each sample's place in the global batch's data order.
    """
    loss_fn = make_loss(model, objective, config)
    accumulate, trainable = config.train.accumulate, config.train.trainable

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        trained, frozen = split_trainable(state.params, trainable)

        def gradient(batch):
            def with_moves(moves):
                def loss_of(trained):
                    return loss_fn(trained | frozen, batch, state.train_step, moves)

                return jax.grad(loss_of, has_aux=True)

            if "frames" not in batch:
                return with_moves(None)(trained)
            # Of 1 … T latent steps, so that any number can be drawn later.
            count = 1 + batch["frames"].shape[1]
            key = stream_key(config.seed, "moves", state.train_step)
            moves = jax.random.randint(key, (), 0, count)
            return jax.lax.switch(moves, [with_moves(n) for n in range(1, count + 1)], trained)

        if accumulate == 1:
            grads, metrics = gradient(batch)
        else:
            # Every A-th sample, so that a micro-batch is spread over the devices as a batch is.
            parts = jax.tree.map(
                lambda leaf: leaf.reshape(-1, accumulate, *leaf.shape[1:]).swapaxes(0, 1),
                batch,
            )

            def add(total, part):
                return jax.tree.map(lambda a, b: a + b / accumulate, total, gradient(part)), None

            shapes = jax.eval_shape(gradient, jax.tree.map(lambda leaf: leaf[0], parts))
            zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            (grads, metrics), _ = jax.lax.scan(add, zero, parts)

        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        ema = optax.incremental_update(trained, state.ema, 1 - config.train.ema_decay)
        metrics["grad_norm"] = optax.global_norm(grads)
        state = TrainState(state.train_step + 1, trained | frozen, ema, opt_state)
        return state, metrics

    return train_step


def jit_train_step(
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
    shardings: TrainState,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """`make_train_step`, jitted with the state donated; to be called under `jax.set_mesh`."""
    step = make_train_step(model, objective, optimizer, config)

    def brought(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return step(on_device(state, shardings), batch)

    return jax.jit(
        brought if config.train.offload else step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
