"""The diffusion loss and its gradient, as pure functions.

Axes: B samples in the batch.
"""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tp_jax.diffusion.objective import Objective, expand
from tp_jax.models.parameters import Params
from tp_jax.parallel.randomness import sample_keys, stream_key
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.layer import RoutingStats, ThinkingOptions
from tp_jax.thinking.recursion import balance_loss

Metrics = dict[str, jax.Array]
# (trained parameters, frozen parameters, batch, train_step) -> (gradients, metrics)
Gradient = Callable[[Params, Params, Any, jax.Array], tuple[Params, Metrics]]
# (x_t, timestep, condition, options) -> (prediction, {block index: RoutingStats})
Predict = Callable[..., tuple[jax.Array, dict[int, RoutingStats]]]


def make_loss(
    model: nn.Module, objective: Objective, config: ConfigDict
) -> Callable[[Params, Any, jax.Array], tuple[jax.Array, Metrics]]:
    """Make the loss function (params, batch, train_step) -> (loss, metrics)."""
    diffusion_terms = make_diffusion_terms(model, objective, config)

    def loss_fn(params: Params, batch: Any, train_step: jax.Array) -> tuple[jax.Array, Metrics]:
        def predict(*inputs: Any) -> tuple[jax.Array, dict[int, RoutingStats]]:
            found = model.apply({"params": params}, *inputs)
            return cast(tuple[jax.Array, dict[int, RoutingStats]], found)

        metrics, routing_stats = diffusion_terms(predict, batch["x"], batch, train_step)
        return add_balance_loss(metrics["loss"], metrics, routing_stats, config)

    return loss_fn


def make_gradient(model: nn.Module, objective: Objective, config: ConfigDict) -> Gradient:
    """Make the gradient of `make_loss` with respect to the trained parameters."""
    loss_fn = make_loss(model, objective, config)

    def gradient(
        trained: Params, frozen: Params, batch: Any, train_step: jax.Array
    ) -> tuple[Params, Metrics]:
        def loss_of(trained: Params) -> tuple[jax.Array, Metrics]:
            return loss_fn(trained | frozen, batch, train_step)

        return jax.grad(loss_of, has_aux=True)(trained)

    return gradient


def make_diffusion_terms(
    model: nn.Module, objective: Objective, config: ConfigDict
) -> Callable[[Predict, jax.Array, Any, jax.Array], tuple[Metrics, dict[int, RoutingStats]]]:
    """Make the function that computes the objective's loss terms and the thinking metrics.

    Returns:
      (predict, x [B, H, W, C], batch, train_step) -> (metrics, {block index: RoutingStats}). All
      random numbers depend only on (seed, stream, train_step, sample), not on the mesh or on the
      number of micro-batches.
    """
    dropout = config.train.condition_dropout

    def diffusion_terms(
        predict: Predict, x: jax.Array, batch: Any, train_step: jax.Array
    ) -> tuple[Metrics, dict[int, RoutingStats]]:
        index, condition = batch["index"], batch["condition"]

        def keys(stream: str) -> jax.Array:
            return sample_keys(stream_key(config.seed, stream, train_step), index)

        times = objective.sample_times(keys("time"))
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys("noise"))
        dropped = jax.vmap(lambda key: jax.random.uniform(key) < dropout)(keys("dropout"))
        condition = jax.tree.map(
            lambda null, given: jnp.where(expand(dropped, given), null, given),
            model.null_condition(condition),
            condition,
        )
        routing = GateRandomness(stream_key(config.seed, "routing", train_step), index)
        routing_stats: dict[int, RoutingStats] = {}

        def predicted(x_t: jax.Array, timestep: jax.Array) -> jax.Array:
            output, found = predict(x_t, timestep, condition, ThinkingOptions(routing))
            routing_stats.update(found)
            return output

        terms = objective.losses(predicted, x, noise, times)
        metrics = {name: value.mean() for name, value in terms.items()}
        for layer, stats in routing_stats.items():
            metrics |= thinking_metrics(layer, stats)
        return metrics, routing_stats

    return diffusion_terms


def add_balance_loss(
    loss: jax.Array, metrics: Metrics, routing_stats: dict[int, RoutingStats], config: ConfigDict
) -> tuple[jax.Array, Metrics]:
    """Add the load-balance loss with weight `config.model.thinking.balance_weight`, unless 0."""
    weight = config.model.thinking.balance_weight
    if not weight:
        return loss, metrics
    balance = sum((balance_loss(stats) for stats in routing_stats.values()), jnp.zeros(()))
    return loss + weight * balance, metrics | {"balance": balance}


def thinking_metrics(layer: int, stats: RoutingStats) -> Metrics:
    """Return the metrics of one thinking layer.

    They are the mean gate entropy, each expert's share of the tokens and, with several latent
    steps, the share of tokens that keep their expert from one latent step to the next. Entropy and
    shares are given without the noise and the temperature of training, as in sampling, and
    ("drawn") with them, as the train step routed the tokens.
    """
    metrics = {
        f"gate_entropy/layer_{layer}": stats.entropy.mean(),
        f"expert_use/layer_{layer}": stats.expert_use.mean(0),
        f"drawn_gate_entropy/layer_{layer}": stats.drawn_entropy.mean(),
        f"drawn_expert_use/layer_{layer}": stats.drawn_use.mean(0),
    }
    if stats.kept.size:
        metrics[f"expert_kept/layer_{layer}"] = stats.kept.mean()
    return metrics
