"""The denoising loss on validation examples, at fixed noise, times and routing.

Axes: N examples, K times of each, B examples per batch.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tp_jax.data import ValidationExamples
from tp_jax.diffusion.objective import Objective
from tp_jax.latents.codec import Codec, Pooling
from tp_jax.messages.progress import progress_bar
from tp_jax.models.parameters import Params
from tp_jax.parallel.mesh import padded_batch_size
from tp_jax.parallel.randomness import sample_keys, stream_key
from tp_jax.parallel.sharding import batch_sharding, replicated, shard_from_hosts
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.layer import RoutingStats, ThinkingOptions

# Multiples of this number, modulo 1, fill the unit interval evenly, however many there are.
GOLDEN_RATIO = (5**0.5 - 1) / 2
# Keeps quantiles away from 0 and 1, at which the time of a flow is exactly 0 or 1.
EDGE = 1e-6


@dataclasses.dataclass(frozen=True)
class Losses:
    """The losses of N examples, at K times each.

    Attributes:
      losses: [N, K] float64, what training minimises the mean of.
      timesteps: [N, K] float64 in 0 … 1000.
      latent_steps: [N, K] float64, the mean number of latent steps of a token, over all thinking
        layers; 0 without thinking, and T unless tokens halt.
      digest: SHA-256 of the examples; losses of two models can be paired if it is the same.
    """

    losses: np.ndarray
    timesteps: np.ndarray
    latent_steps: np.ndarray
    digest: str


@dataclasses.dataclass(frozen=True)
class Validation:
    """Computes the losses of parameters on fixed examples.

    The noise, the times and the experts of a random gate depend only on `seed` and on the index of
    an example. Two models therefore solve the same problems, and the differences of their losses
    vary much less than the losses. A learned gate chooses as in sampling.

    Attributes:
      model: the DiT or MMDiT.
      objective: its objective.
      mesh: the mesh that batches are sharded over.
      parts: the examples, by the name of the part.
      seed: `config.validation.seed`.
      times: number K of times of each example, one in each of K equally likely ranges of the
        distribution of training.
      batch_size: examples per batch; smaller if there are fewer examples.
      latent_steps: number T of latent steps; None is that of training.
      halting_epsilon: ε of halting by "threshold"; None halts tokens as the config says.
      encoder: encodes pixels as latents; None if the model takes the examples as they are.
    """

    model: nn.Module
    objective: Objective
    mesh: Mesh
    parts: Mapping[str, ValidationExamples]
    seed: int
    times: int
    batch_size: int
    latent_steps: int | None = None
    halting_epsilon: float | None = None
    encoder: Codec | Pooling | None = None

    def __post_init__(self) -> None:
        if self.latent_steps is not None:
            self.model.config.thinking.check_latent_steps(self.latent_steps)

    def losses(self, params: Params, part: str, *, progress: bool = False) -> Losses:
        """Compute the losses of all examples of a part.

        Args:
          params: parameters of the model, sharded over the mesh.
          part: a key of `parts`.
          progress: show a progress bar.
        """
        examples, digest = self.parts[part], hashlib.sha256()
        num, found = examples.count, list[tuple[np.ndarray, ...]]()
        batch_size = min(self.batch_size, padded_batch_size(self.mesh, num))
        with progress_bar(num, f"loss of {part} examples", "example", shown=progress) as bar:
            for start in range(0, num, batch_size):
                index = np.arange(start, start + batch_size)
                kept = min(batch_size, num - start)
                # The last batch is padded by repeating the last example.
                index = np.minimum(index, num - 1)
                batch = examples.batch(index)
                results = self._run_on_mesh(params, batch, index)
                found.append(tuple(values[:, :kept] for values in results))
                leaves = jax.tree.leaves(batch)
                for row in range(kept):
                    for leaf in leaves:
                        digest.update(np.ascontiguousarray(leaf[row]).tobytes())
                bar.update(kept)
        losses, timesteps, latent_steps = (
            np.concatenate(rows, axis=1).T.astype(np.float64) for rows in zip(*found, strict=True)
        )
        return Losses(losses, timesteps, latent_steps, digest.hexdigest())

    def _run_on_mesh(
        self, params: Params, examples: dict[str, Any], index: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return losses, timesteps and latent steps [K, B] of examples with these indices [B]."""
        inputs = {"index": index.astype(np.int32), "quantiles": self.quantiles(index)}
        batch = shard_from_hosts(examples | inputs, batch_sharding(self.mesh))
        with jax.set_mesh(self.mesh):
            if self.encoder:
                batch["x"] = self.encoder.encode(batch["x"], batch["index"], self.seed, 0)
            return jax.device_get(self._run(params, batch))

    def quantiles(self, index: np.ndarray) -> np.ndarray:
        """Return the quantiles [B, K] of the times of the examples with these indices, float32.

        Quantile k is in k/K … (k + 1)/K. Where it lies in there differs from example to example
        such that all quantiles together are as evenly spaced as they can be.
        """
        shift = np.random.default_rng(self.seed).random()
        offset = (shift + index[:, None] * GOLDEN_RATIO) % 1
        quantiles = (np.arange(self.times) + offset) / self.times
        return np.clip(quantiles, EDGE, 1 - EDGE).astype(np.float32)

    @functools.cached_property
    def _run(self) -> jax.stages.Wrapped:
        sharded, on_all = batch_sharding(self.mesh), replicated(self.mesh)
        return jax.jit(self._losses, in_shardings=(None, sharded), out_shardings=on_all)

    def _losses(self, params: Params, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, index, condition = batch["x"], batch["index"], batch["condition"]

        def at(k: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            keys = sample_keys(stream_key(self.seed, "validation noise", k), index)
            noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
            routing_key = stream_key(self.seed, "validation routing", k)
            routing = GateRandomness(routing_key, index, train=False)
            options = ThinkingOptions(
                routing,
                self.latent_steps,
                trace=self._halts,
                halting_epsilon=self.halting_epsilon,
            )
            seen: list[tuple[jax.Array, jax.Array]] = []

            def predict(x_t: jax.Array, timestep: jax.Array) -> jax.Array:
                found = self.model.apply({"params": params}, x_t, timestep, condition, options)
                output, stats = cast("tuple[jax.Array, dict[int, RoutingStats]]", found)
                seen.append((timestep, self._mean_latent_steps(stats, len(x))))
                return output

            times = self.objective.times_at(batch["quantiles"][:, k])
            losses = self.objective.losses(predict, x, noise, times)["loss"]
            return losses, *seen[0]

        # One time after another, so that the memory is that of one batch.
        return jax.lax.map(at, jnp.arange(self.times))

    @property
    def _halts(self) -> bool:
        """Whether tokens may stop before the last latent step."""
        thinking = self.model.config.thinking
        chosen = self.halting_epsilon is not None or thinking.halting != "none"
        return chosen and bool(thinking.layers)

    def _mean_latent_steps(self, stats: Mapping[int, RoutingStats], batch: int) -> jax.Array:
        """Return the mean number of latent steps of each example's tokens, [B] float32."""
        thinking = self.model.config.thinking
        if not self._halts:
            steps = (self.latent_steps or thinking.latent_steps) if stats else 0
            return jnp.full(batch, steps, jnp.float32)
        # Tokens that have halted have the out-of-range expert M.
        live = jnp.stack([jnp.asarray(one.expert) < thinking.experts for one in stats.values()])
        return live.sum(1).mean((0, 2), dtype=jnp.float32)
