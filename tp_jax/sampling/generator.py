"""Samples from a model: one compiled batch, repeated. B samples, H×W pixels, C channels."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tp_jax.diffusion import Objective, SamplerConfig, guide
from tp_jax.diffusion import sample as draw
from tp_jax.latents.codec import Codec, Pooling
from tp_jax.messages.errors import UserError
from tp_jax.models.parameters import Params
from tp_jax.parallel.mesh import check_batch_size, padded_batch_size
from tp_jax.parallel.randomness import stream_key
from tp_jax.parallel.sharding import batch_sharding, replicated
from tp_jax.thinking import RoutingNoise, ThinkingOptions


@dataclasses.dataclass(frozen=True)
class Generator:
    """Draws samples of one model with one sampler.

    A sample depends on (params, seed, its index, its condition) alone, not on the batch size
    or its batch-mates.

    Attributes:
      model: DiT or MMDiT.
      latent_steps: None is the T of training.
      batch_size: images drawn at once, or as many as there are to draw.
      codec: decodes what is drawn, where the model diffuses latents.
      size: height and width of what the model draws, in its own pixels or latents; None is the
        square of training.
    """

    model: nn.Module
    objective: Objective
    sampler: SamplerConfig
    mesh: Mesh
    batch_size: int
    latent_steps: int | None = None
    codec: Codec | Pooling | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_batch_size(self.mesh, "batch_size", self.batch_size)
        if self.latent_steps is not None:
            self.model.config.thinking.check_latent_steps(self.latent_steps)

    def compiled(self) -> jax.stages.Wrapped:
        """Jitted (params, key, sample index [B], condition) -> [B, H, W, C] float32."""
        cut, whole = batch_sharding(self.mesh), replicated(self.mesh)
        return jax.jit(self.draw, in_shardings=(None, whole, cut, cut), out_shardings=cut)

    @functools.cached_property
    def _run(self) -> Callable[..., jax.Array]:
        return self.compiled()

    def draw(
        self, params: Params, key: jax.Array, index: jax.Array, condition: dict[str, jax.Array]
    ) -> jax.Array:
        """One batch, as `compiled` runs it."""
        config, sampler = self.model.config, self.sampler

        def predict(x: jax.Array, timestep: jax.Array, model_key: jax.Array) -> jax.Array:
            def apply(
                x: jax.Array, timestep: jax.Array, condition: Any, index: jax.Array
            ) -> jax.Array:
                noise = RoutingNoise(model_key, index, train=False)
                options = ThinkingOptions(noise, self.latent_steps)
                return self.model.apply({"params": params}, x, timestep, condition, options)[0]

            guided = guide(
                apply,
                condition,
                self.model.null_condition(condition),
                scale=sampler.guidance_scale,
                channels=sampler.guidance_channels,
                interval=sampler.guidance_interval,
            )
            return guided(x, timestep, index)

        shape = (*(self.size or (config.image_size,) * 2), config.channels)
        return draw(self.objective, sampler, predict, key, index, shape)

    def batches(
        self,
        params: Any,
        conditions: Any,
        seed: int,
        first: int = 0,
        rows: np.ndarray | None = None,
        numbers: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields images [≤ B, H, W, C] float32 in order, until every sample is drawn.

        Args:
          conditions: pytree of arrays with a leading axis.
          rows: [N] which row of the conditions each sample has; by default one sample a row. The
            last batch is filled up with the last, and what that draws is dropped.
          numbers: [N] int32, the index of each sample that decides its noise; 0, 1, … by default.
          first: index of the first sample to draw; those before it are there already.
        """
        run, cut = self._run, batch_sharding(self.mesh)
        # Made where it is used: a key can't be put onto the devices of other processes.
        whole = replicated(self.mesh)
        key = jax.jit(lambda: stream_key(seed, "generation"), out_shardings=whole)()
        if rows is None:
            rows = np.arange(len(jax.tree.leaves(conditions)[0]))
        count = len(rows)
        # Not more than there are to draw, as far as the devices can share them.
        batch_size = min(self.batch_size, padded_batch_size(self.mesh, count - first))
        for start in range(first, count, batch_size):
            index = np.arange(start, start + batch_size)
            chosen = rows[np.minimum(index, count - 1)]
            if numbers is not None:
                index = numbers[np.minimum(index, count - 1)]
            condition = jax.tree.map(lambda leaf, at=chosen: np.asarray(leaf)[at], conditions)
            # Each process puts its own rows, which needs no comparing with the others'.
            inputs = jax.tree.map(
                lambda leaf: jax.make_array_from_callback(
                    leaf.shape, cut, lambda rows, leaf=leaf: leaf[rows]
                ),
                (index.astype(np.int32), condition),
            )
            with jax.set_mesh(self.mesh):
                images = run(params, key, *inputs)
            images = self.codec.decode(images) if self.codec else images
            yield _whole(images)[: count - start]


def _whole(images: jax.Array) -> np.ndarray:
    """A global batch on this host, whichever processes hold it."""
    if images.is_fully_addressable:
        return jax.device_get(images)
    return multihost_utils.process_allgather(images, tiled=True)


def choose_labels(
    labels: Sequence[int], num: int, num_classes: int, seed: int | None = None
) -> np.ndarray:
    """`num` labels [num] int32 that go round `labels`, or round all classes where it is empty.

    Args:
      seed: draws them uniformly instead of going round.

    Raises:
      UserError: a label that the model doesn't have.
    """
    if num < 1:
        raise UserError(f"num={num}: must be 1 or more")
    classes = max(num_classes, 1)
    for label in labels:
        if not 0 <= label < classes:
            raise UserError(f"label {label} is out of range: the model has 0 to {classes - 1}")
    choices = np.array(labels or range(classes), np.int32)
    if seed is None:
        return np.resize(choices, num)
    return np.random.default_rng(seed).choice(choices, num)
