"""The loss of models that predict one frame per latent step, as for FrozenLake.

Each latent step stands for one move in the environment. Every update samples a number of latent
steps t in 1 … T. The last latent step is trained to predict the frame after t moves, and the
earlier ones to decode to the frames before it. The model can then sample any number of moves up
to T.

Axes: B samples, T latent steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tp_jax.diffusion.objective import Objective
from tp_jax.models.dit import DiT
from tp_jax.models.latent_step_frames import decode_latent_steps
from tp_jax.models.parameters import Params
from tp_jax.parallel.randomness import stream_key
from tp_jax.thinking.layer import RoutingStats, ThinkingOptions
from tp_jax.train.loss import Gradient, Metrics, add_balance_loss, make_diffusion_terms


def make_frames_loss(
    model: DiT, objective: Objective, config: ConfigDict
) -> Callable[[Params, Any, jax.Array, int], tuple[jax.Array, Metrics]]:
    """Make the loss function (params, batch, train_step, latent_steps) -> (loss, metrics).

    The batch has "x" [B, H, W, C], the frame after T moves, and "frames" [B, T-1, H, W, C], the
    frames after 1 … T-1 moves.
    """
    diffusion_terms = make_diffusion_terms(model, objective, config)

    def loss_fn(
        params: Params, batch: Any, train_step: jax.Array, latent_steps: int
    ) -> tuple[jax.Array, Metrics]:
        frames = jnp.concatenate([batch["frames"], batch["x"][:, None]], axis=1)
        x, earlier = frames[:, latent_steps - 1], frames[:, : latent_steps - 1]
        decoded: Metrics = {}

        def predict(
            x_t: jax.Array, timestep: jax.Array, condition: Any, options: ThinkingOptions
        ) -> tuple[jax.Array, dict[int, RoutingStats]]:
            options = dataclasses.replace(options, latent_steps=latent_steps)
            steps, routing_stats = decode_latent_steps(
                model, params, x_t, timestep, condition, options
            )
            error = jnp.square(steps[:-1].swapaxes(0, 1) - earlier).sum()
            decoded["frames"] = error / max(earlier.size, 1)
            return steps[-1], routing_stats

        metrics, routing_stats = diffusion_terms(predict, x, batch, train_step)
        # Every `lax.switch` branch must return the same keys; with one latent step `expert_kept`
        # would be empty.
        metrics = {k: v for k, v in metrics.items() if not k.startswith("expert_kept")} | decoded
        loss = metrics["loss"] + config.frozenlake.frames_weight * decoded["frames"]
        return add_balance_loss(loss, metrics, routing_stats, config)

    return loss_fn


def make_frames_gradient(model: DiT, objective: Objective, config: ConfigDict) -> Gradient:
    """Make the gradient of `make_frames_loss`, with a number of latent steps sampled per update."""
    loss_fn = make_frames_loss(model, objective, config)

    def gradient(
        trained: Params, frozen: Params, batch: Any, train_step: jax.Array
    ) -> tuple[Params, Metrics]:
        def gradient_at(latent_steps: int) -> Callable[[Params], tuple[Params, Metrics]]:
            def loss_of(trained: Params) -> tuple[jax.Array, Metrics]:
                return loss_fn(trained | frozen, batch, train_step, latent_steps)

            return jax.grad(loss_of, has_aux=True)

        max_steps = 1 + batch["frames"].shape[1]
        # Renaming the stream would change the random numbers of every seed.
        key = stream_key(config.seed, "moves", train_step)
        index = jax.random.randint(key, (), 0, max_steps)
        # Take the gradient inside the branches, so that only the chosen branch is computed.
        branches = [gradient_at(steps) for steps in range(1, max_steps + 1)]
        return jax.lax.switch(index, branches, trained)

    return gradient
