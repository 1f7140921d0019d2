"""Generate the frames of every latent step. B samples, T latent steps, S pixels per frame side."""

import dataclasses

import jax
import jax.numpy as jnp

from tp_jax.diffusion.samplers import sample_noise
from tp_jax.models.latent_step_outputs import decode_latent_steps
from tp_jax.models.parameters import Params
from tp_jax.sampling.generator import Generator, Trace
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.layer import ThinkingOptions


@dataclasses.dataclass(frozen=True)
class FrameGenerator(Generator):
    """A generator that returns the frames of all latent steps, [B, T, S, S, C] in [-1, 1].

    Attributes:
      read_sigma: noise level at which the latent steps are decoded. Noise of this level is added to
        the last generated frame before the model runs once more.
    """

    read_sigma: float = 0.1

    def draw(
        self, params: Params, key: jax.Array, index: jax.Array, condition: dict[str, jax.Array]
    ) -> jax.Array:
        """Return samples as `Generator.draw` does, but with a latent-step axis [B, T, …]."""
        return self.draw_and_trace(params, key, index, condition)[0]

    def draw_and_trace(
        self,
        params: Params,
        key: jax.Array,
        index: jax.Array,
        condition: dict[str, jax.Array],
        tokens: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, dict[int, Trace]]]:
        """Return what `draw` returns, and the routing of the prediction that is decoded.

        The routing has the form of `Generator.draw_and_trace`, with a single sampler step.
        """
        x = super().draw(params, key, index, condition)
        key, model_key = jax.random.split(jax.random.fold_in(key, 1))
        noise = sample_noise(key, index, 0, x.shape[1:])
        sigma = jnp.full(len(x), self.read_sigma)
        x = self.objective.add_noise(x, noise, sigma)
        options = ThinkingOptions(
            GateRandomness(model_key, index, train=False),
            self.latent_steps,
            halting_epsilon=self.halting_epsilon,
        )
        frames, found = decode_latent_steps(self.model, params, x, 1000 * sigma, condition, options)
        routing = jax.tree.map(lambda leaf: leaf[None], Trace.of(found, tokens))
        return frames.swapaxes(0, 1), (1000 * sigma[:1], routing)
