"""The loss of models that draw the frames after each of several moves, as on FrozenLake.

Each latent step stands for one move. An update draws how many latent steps t it takes, 1 … T: the
last one is to predict the frame after t moves, and those before it decode to the frames before. A
model trained so can be asked for any number of moves up to T.

B samples, T latent steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from tp_jax.diffusion import Objective
from tp_jax.models.dit import DiT
from tp_jax.models.latent_step_frames import decode_latent_steps
from tp_jax.models.parameters import Params
from tp_jax.parallel.randomness import stream_key
from tp_jax.thinking import ThinkingOptions, Thought
from tp_jax.train.loss import Gradient, Metrics, make_diffusion_terms, with_balance


def make_frames_loss(
    model: DiT, objective: Objective, config: ConfigDict
) -> Callable[[Params, Any, jax.Array, int], tuple[jax.Array, Metrics]]:
    """Loss of (params, batch, train_step, latent_steps) -> (scalar, metrics).

    The batch has "x" [B, H, W, C], the frame after T moves, and "frames" [B, T-1, H, W, C], those
    after 1 … T-1.
    """
    diffusion_terms = make_diffusion_terms(model, objective, config)

    def loss_fn(
        params: Params, batch: Any, train_step: jax.Array, latent_steps: int
    ) -> tuple[jax.Array, Metrics]:
        frames = jnp.concatenate([batch["frames"], batch["x"][:, None]], axis=1)
        x, before = frames[:, latent_steps - 1], frames[:, : latent_steps - 1]
        decoded: Metrics = {}

        def predict(
            x_t: jax.Array, timestep: jax.Array, condition: Any, options: ThinkingOptions
        ) -> tuple[jax.Array, dict[int, Thought]]:
            options = dataclasses.replace(options, latent_steps=latent_steps)
            steps, thoughts = decode_latent_steps(model, params, x_t, timestep, condition, options)
            error = jnp.square(steps[:-1].swapaxes(0, 1) - before).sum()
            decoded["frames"] = error / max(before.size, 1)
            return steps[-1], thoughts

        metrics, thoughts = diffusion_terms(predict, x, batch, train_step)
        # Every `lax.switch` branch must return the same keys; with one latent step `expert_kept`
        # would be empty.
        metrics = {k: v for k, v in metrics.items() if not k.startswith("expert_kept")} | decoded
        loss = metrics["loss"] + config.frozenlake.frames_weight * decoded["frames"]
        return with_balance(loss, metrics, thoughts, config)

    return loss_fn


def make_frames_gradient(model: DiT, objective: Objective, config: ConfigDict) -> Gradient:
    """The gradient of `make_frames_loss` at a number of latent steps drawn for each update."""
    loss_fn = make_frames_loss(model, objective, config)

    def gradient(
        trained: Params, frozen: Params, batch: Any, train_step: jax.Array
    ) -> tuple[Params, Metrics]:
        def at(latent_steps: int) -> Callable[[Params], tuple[Params, Metrics]]:
            def loss_of(trained: Params) -> tuple[jax.Array, Metrics]:
                return loss_fn(trained | frozen, batch, train_step, latent_steps)

            return jax.grad(loss_of, has_aux=True)

        most = 1 + batch["frames"].shape[1]
        # The name of the stream stays, so that a seed goes on giving the same numbers.
        key = stream_key(config.seed, "moves", train_step)
        index = jax.random.randint(key, (), 0, most)
        # Gradients inside the branches, so that the branches not taken cost nothing.
        return jax.lax.switch(index, [at(steps) for steps in range(1, most + 1)], trained)

    return gradient
