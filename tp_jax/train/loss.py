"""The diffusion loss and its gradient, as pure functions.

Axes: B samples in the batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tp_jax.diffusion.objective import Objective, expand
from tp_jax.models.latent_step_outputs import decode_latent_steps
from tp_jax.models.parameters import Params
from tp_jax.parallel.randomness import sample_keys, stream_key
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.halting import score_term
from tp_jax.thinking.layer import RoutingStats, ThinkingOptions
from tp_jax.thinking.recursion import balance_loss, over_latent_steps
from tp_jax.train.supervision import choose_supervision

Metrics = dict[str, jax.Array]
# (params, batch, train_step, latent_steps) -> (loss, metrics)
Loss = Callable[[Params, Any, jax.Array, int], tuple[jax.Array, Metrics]]
# (trained parameters, frozen parameters, batch, train_step) -> (gradients, metrics)
Gradient = Callable[[Params, Params, Any, jax.Array], tuple[Params, Metrics]]
# (x_t, timestep, condition, options) -> (prediction, {block index: RoutingStats})
Predict = Callable[..., tuple[jax.Array, dict[int, RoutingStats]]]


def make_loss(model: nn.Module, objective: Objective, config: ConfigDict) -> Loss:
    """Make the loss function (params, batch, train_step, latent_steps) -> (loss, metrics).

    The last latent step predicts what the objective asks for. What the others decode to is trained
    as `supervision.choose_supervision` says.
    """
    diffusion_terms = make_diffusion_terms(model, objective, config)
    supervision = choose_supervision(model.config, config)

    def loss_fn(
        params: Params, batch: Any, train_step: jax.Array, latent_steps: int
    ) -> tuple[jax.Array, Metrics]:
        intermediate: list[jax.Array] = []

        def predict(
            x_t: jax.Array, timestep: jax.Array, condition: Any, options: ThinkingOptions
        ) -> tuple[jax.Array, dict[int, RoutingStats]]:
            options = dataclasses.replace(options, latent_steps=latent_steps)
            if supervision is None:
                found = model.apply({"params": params}, x_t, timestep, condition, options)
                return cast(tuple[jax.Array, dict[int, RoutingStats]], found)
            outputs, routing_stats = decode_latent_steps(
                model, params, x_t, timestep, condition, options
            )
            intermediate.append(outputs[:-1])
            return outputs[-1], routing_stats

        x = batch["x"] if supervision is None else supervision.target(batch, latent_steps)
        terms = diffusion_terms(predict, x, batch, train_step)
        metrics, loss = terms.metrics, terms.metrics["loss"]
        if "halting_divergence" in metrics:
            loss += config.model.thinking.ponder_weight * metrics["halting_divergence"]
        if supervision is not None:
            supervised = supervision.loss(intermediate[0], batch, terms.loss_of)
            metrics = metrics | {supervision.name: supervised}
            loss += supervision.weight * supervised
        return add_balance_loss(loss, metrics, terms.routing_stats, config)

    return loss_fn


def make_gradient(model: nn.Module, objective: Objective, config: ConfigDict) -> Gradient:
    """Make the gradient of `make_loss` with respect to the trained parameters.

    If the model trains several numbers of latent steps, each update draws one of them by (seed,
    train_step), and the metrics have it as "latent_steps".
    """
    loss_fn = make_loss(model, objective, config)
    choices: range = model.config.trained_latent_steps
    # Frames have a name of their own, because another one would change their random numbers.
    stream = "moves" if model.config.condition_kind == "frame" else "latent_steps"

    def gradient(
        trained: Params, frozen: Params, batch: Any, train_step: jax.Array
    ) -> tuple[Params, Metrics]:
        def gradient_at(latent_steps: int) -> Callable[[Params], tuple[Params, Metrics]]:
            def loss_of(trained: Params) -> tuple[jax.Array, Metrics]:
                loss, metrics = loss_fn(trained | frozen, batch, train_step, latent_steps)
                if 1 in choices:
                    # Every `lax.switch` branch must return the same keys, and with one latent step
                    # there is no `expert_kept`.
                    metrics = {k: v for k, v in metrics.items() if not k.startswith("expert_kept")}
                return loss, metrics

            return jax.grad(loss_of, has_aux=True)

        if len(choices) == 1:
            return gradient_at(choices[0])(trained)
        key = stream_key(config.seed, stream, train_step)
        index = jax.random.randint(key, (), 0, len(choices))
        # Take the gradient inside the branches, so that only the chosen branch is computed.
        branches = [gradient_at(latent_steps) for latent_steps in choices]
        gradients, metrics = jax.lax.switch(index, branches, trained)
        return gradients, metrics | {"latent_steps": (choices[0] + index).astype(jnp.float32)}

    return gradient


@dataclasses.dataclass(frozen=True)
class DiffusionTerms:
    """The objective's loss of one prediction, and what belongs to it.

    Attributes:
      metrics: the means of the objective's terms, "loss" among them, and the thinking metrics.
      routing_stats: {block index: RoutingStats} of the prediction.
      loss_of: another output [B, H, W, out_channels] for the same x, noise and times -> its mean
        loss, float32.
    """

    metrics: Metrics
    routing_stats: dict[int, RoutingStats]
    loss_of: Callable[[jax.Array], jax.Array]


def make_diffusion_terms(
    model: nn.Module, objective: Objective, config: ConfigDict
) -> Callable[[Predict, jax.Array, Any, jax.Array], DiffusionTerms]:
    """Make the function that computes the objective's loss terms and the thinking metrics.

    Returns:
      (predict, x [B, H, W, C], batch, train_step) -> DiffusionTerms. All random numbers depend only
      on (seed, stream, train_step, sample), not on the mesh or on the number of micro-batches.
    """
    dropout = config.train.condition_dropout

    def diffusion_terms(
        predict: Predict, x: jax.Array, batch: Any, train_step: jax.Array
    ) -> DiffusionTerms:
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
        terms = add_halting_terms(terms, routing_stats, config)
        metrics = {name: value.mean() for name, value in terms.items()}
        for layer, stats in routing_stats.items():
            metrics |= thinking_metrics(layer, stats)

        def loss_of(output: jax.Array) -> jax.Array:
            return objective.losses(lambda *_: output, x, noise, times)["loss"].mean()

        return DiffusionTerms(metrics, routing_stats, loss_of)

    return diffusion_terms


def add_halting_terms(
    terms: Metrics, routing_stats: dict[int, RoutingStats], config: ConfigDict
) -> Metrics:
    """Add what trains the halting units with `config.model.thinking.halting="ponder"`.

    Args:
      terms: {name: [B] float32}, the loss terms of each sample.
      routing_stats: of the thinking layers.
      config: of the run.

    Returns:
      The terms with "halting_divergence" [B], summed over the layers, which the loss has to contain
      with weight `ponder_weight`. "loss" keeps its value, and its gradient contains that of the
      halting draws' probability (`thinking/halting.py`).
    """
    thinking, layers = config.model.thinking, list(routing_stats.values())
    if thinking.halting != "ponder" or not layers:
        return terms

    def total(values: list[jax.Array | None]) -> jax.Array:
        return jnp.sum(jnp.stack(cast("list[jax.Array]", values)), axis=0)

    divergence = total([stats.halting_divergence for stats in layers])
    log_probability = total([stats.halting_log_probability for stats in layers])
    cost = terms["loss"] + thinking.ponder_weight * divergence
    loss = terms["loss"] + score_term(cost, log_probability)
    return terms | {"loss": loss, "halting_divergence": divergence}


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
    steps, the share of tokens that keep their expert from one latent step to the next; with
    halting, also the mean number of latent steps of a token. Entropy and shares are given without
    the noise and the temperature of training, as in sampling, and ("drawn") with them, as the train
    step routed the tokens.
    """
    metrics = {
        f"gate_entropy/layer_{layer}": over_latent_steps(stats.entropy, stats),
        f"expert_use/layer_{layer}": over_latent_steps(stats.expert_use, stats),
        f"drawn_gate_entropy/layer_{layer}": over_latent_steps(stats.drawn_entropy, stats),
        f"drawn_expert_use/layer_{layer}": over_latent_steps(stats.drawn_use, stats),
    }
    if stats.live is not None:
        metrics[f"latent_steps_used/layer_{layer}"] = stats.live.sum()
    if stats.kept.size:
        kept = stats.kept
        if stats.live is not None:
            live = stats.live[1:]
            kept = kept * live / jnp.maximum(live.mean(), 1e-9)
        metrics[f"expert_kept/layer_{layer}"] = kept.mean()
    return metrics
