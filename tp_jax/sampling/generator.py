"""Sample from a model, batch by batch, with one compiled function.

B samples per batch, N samples in total, H×W pixels or latents, C channels.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tp_jax.diffusion import SamplerConfig
from tp_jax.diffusion.guidance import guide
from tp_jax.diffusion.objective import Objective
from tp_jax.diffusion.samplers import KeyedPredict, sample, sample_and_observe
from tp_jax.latents.codec import Codec, Pooling
from tp_jax.messages.errors import UserError
from tp_jax.models.attention import check_attention
from tp_jax.models.parameters import Params
from tp_jax.parallel.mesh import check_batch_size, padded_batch_size
from tp_jax.parallel.randomness import stream_key
from tp_jax.parallel.sharding import batch_sharding, replicated, shard_from_hosts
from tp_jax.thinking.gate import GateRandomness
from tp_jax.thinking.layer import RoutingStats, ThinkingOptions

# ({block: its statistics and trace}, sample indices [B]) -> pytree of arrays.
Observe = Callable[[Mapping[int, RoutingStats], jax.Array], Any]
# (params, key, index [B], condition) -> (samples [B, H, W, C], (timesteps [S], pytree of arrays)).
DrawAndObserve = Callable[..., tuple[jax.Array, tuple[jax.Array, Any]]]


class Trace(NamedTuple):
    """The routing of one thinking layer, over S sampler steps and T latent steps.

    Attributes:
      expert: [S, T, B, N] int32, the chosen experts; M for tokens that have halted.
      probabilities: [S, T, B, N, M] float32, the gate's probabilities.
      tokens: [S, T, B, N, D], the tokens that enter each latent step; None unless asked for.
    """

    expert: Any
    probabilities: Any
    tokens: Any = None

    @classmethod
    def of(cls, found: Mapping[int, RoutingStats], tokens: bool) -> dict[int, "Trace"]:
        """Return the trace of each block, with its tokens if they are asked for."""
        return {
            block: cls(stats.expert, stats.probabilities, stats.tokens if tokens else None)
            for block, stats in found.items()
        }


@dataclasses.dataclass(frozen=True)
class Generator:
    """Generates samples from one model with one sampler.

    A sample depends only on the parameters, the seed, its own index and its condition: not on
    the batch size or on the other samples of the batch.

    Attributes:
      model: the DiT or MMDiT.
      objective: the objective that the model was trained with.
      sampler: the sampler and its guidance.
      mesh: the mesh that batches are sharded over.
      batch_size: samples per batch; smaller if fewer samples are needed.
      latent_steps: number T of latent steps; None is that of training.
      codec: decodes latents into images; None if the model generates pixels.
      size: height and width of the samples as the model generates them; None is that of training.
      halting_epsilon: ε of halting by "threshold"; None halts tokens as the config says.
    """

    model: nn.Module
    objective: Objective
    sampler: SamplerConfig
    mesh: Mesh
    batch_size: int
    latent_steps: int | None = None
    codec: Codec | Pooling | None = None
    size: tuple[int, int] | None = None
    halting_epsilon: float | None = None

    def __post_init__(self) -> None:
        check_batch_size(self.mesh, "batch_size", self.batch_size)
        check_attention(self.model.config, self.mesh)
        if self.latent_steps is not None:
            self.model.config.thinking.check_latent_steps(self.latent_steps)

    def compiled(self) -> jax.stages.Wrapped:
        """Return `draw` jitted: (params, key, index [B], condition) -> [B, H, W, C] float32."""
        return self._jit(self.draw, batch_sharding(self.mesh))

    def _jit(self, draw: Callable[..., Any], out_shardings: Any) -> jax.stages.Wrapped:
        sharded, on_all = batch_sharding(self.mesh), replicated(self.mesh)
        in_shardings = (None, on_all, sharded, sharded)
        return jax.jit(draw, in_shardings=in_shardings, out_shardings=out_shardings)

    @functools.cached_property
    def _run(self) -> Callable[..., jax.Array]:
        return self.compiled()

    def draw(
        self, params: Params, key: jax.Array, index: jax.Array, condition: dict[str, jax.Array]
    ) -> jax.Array:
        """Sample one batch; `compiled` jits this function.

        Args:
          params: parameters of the model.
          key: random key of the whole run; combined with `index` for each sample.
          index: sample indices [B] int32.
          condition: the model's condition, arrays with a leading axis B.

        Returns:
          Samples [B, H, W, C] float32, not yet decoded.
        """
        predict = self._guided(params, index, condition)
        return sample(self.objective, self.sampler, predict, key, index, self._shape)

    def draw_and_trace(
        self,
        params: Params,
        key: jax.Array,
        index: jax.Array,
        condition: dict[str, jax.Array],
        tokens: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, dict[int, Trace]]]:
        """Sample one batch as `draw` does, and record the routing of every sampler step.

        Args:
          params, key, index, condition: as for `draw`.
          tokens: also record the tokens.

        Returns:
          Samples [B, H, W, C] float32, and (timestep [S], {block: `Trace`}) of the conditional
          prediction.
        """
        return self.draw_and_observe(
            params, key, index, condition, lambda found, _: Trace.of(found, tokens)
        )

    def draw_and_trace_tokens(
        self, params: Params, key: jax.Array, index: jax.Array, condition: dict[str, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, dict[int, Trace]]]:
        """Return what `draw_and_trace` returns, with the tokens."""
        return self.draw_and_trace(params, key, index, condition, tokens=True)

    def draw_and_observe(
        self,
        params: Params,
        key: jax.Array,
        index: jax.Array,
        condition: dict[str, jax.Array],
        observe: Observe,
    ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        """Sample one batch as `draw` does, and observe the thinking layers at every sampler step.

        This costs one more prediction per sampler step, that of the condition without guidance.

        Args:
          params, key, index, condition: as for `draw`.
          observe: called with the traces of this prediction and with `index`.

        Returns:
          Samples [B, H, W, C] float32, and (timestep [S], the results of `observe` with a leading
          axis of S sampler steps).
        """

        def observe_step(x: jax.Array, timestep: jax.Array, model_key: jax.Array) -> Any:
            found = self._apply(params, x, timestep, condition, index, model_key, trace=True)[1]
            return timestep[0], observe(found, index)

        predict = self._guided(params, index, condition)
        return sample_and_observe(
            self.objective, self.sampler, predict, key, index, self._shape, observe_step
        )

    @property
    def grid(self) -> tuple[int, int]:
        """The number of rows and of columns of vision tokens."""
        height, width, _ = self._shape
        return height // self.model.config.patch, width // self.model.config.patch

    @property
    def _shape(self) -> tuple[int, int, int]:
        config = self.model.config
        height, width = self.size or (config.image_size, config.image_size)
        return height, width, config.channels

    def _apply(
        self,
        params: Params,
        x: jax.Array,
        timestep: jax.Array,
        condition: Any,
        index: jax.Array,
        model_key: jax.Array,
        trace: bool = False,
    ) -> Any:
        randomness = GateRandomness(model_key, index, train=False)
        options = ThinkingOptions(
            randomness, self.latent_steps, trace, halting_epsilon=self.halting_epsilon
        )
        return self.model.apply({"params": params}, x, timestep, condition, options)

    def _guided(self, params: Params, index: jax.Array, condition: Any) -> KeyedPredict:
        """Return the model's prediction with classifier-free guidance."""

        def predict(x: jax.Array, timestep: jax.Array, model_key: jax.Array) -> jax.Array:
            def apply(
                x: jax.Array, timestep: jax.Array, condition: Any, index: jax.Array
            ) -> jax.Array:
                return self._apply(params, x, timestep, condition, index, model_key)[0]

            guided = guide(
                apply,
                condition,
                self.model.null_condition(condition),
                scale=self.sampler.guidance_scale,
                channels=self.sampler.guidance_channels,
                interval=self.sampler.guidance_interval,
            )
            return guided(x, timestep, index)

        return predict

    def batch_size_of(self, num: int) -> int:
        """Return the batch size for `num` samples: no more than needed, if devices can share it.

        A command that resumes at a multiple of it generates the same bits.
        """
        return min(self.batch_size, padded_batch_size(self.mesh, num))

    def batches(
        self,
        params: Any,
        conditions: Any,
        seed: int,
        first: int = 0,
        rows: np.ndarray | None = None,
        indices: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield images [≤ B, H, W, C] float32 in order, until all N samples are generated.

        The last batch is padded by repeating the last sample; the padding is dropped.

        Args:
          params: parameters of the model.
          conditions: pytree of arrays with a leading axis.
          seed: seed of the noise.
          first: position of the first sample to generate, when resuming.
          rows: [N] row of `conditions` for each sample; by default one sample per row.
          indices: [N] int32 sample indices, which select the noise; by default 0, 1, …
        """
        found = self._outputs(self._run, params, conditions, seed, first, rows, indices)
        for samples, num in found:
            yield self._decode(samples, num)

    def traces(
        self,
        params: Any,
        conditions: Any,
        seed: int,
        rows: np.ndarray | None = None,
        draw: DrawAndObserve | None = None,
    ) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, Any]]]:
        """Yield the images of `batches`, each batch with what was observed as it was sampled.

        Args:
          params, conditions, seed, rows: as for `batches`.
          draw: samples and observes; by default `draw_and_trace`. The batch must be the third axis
            of all observed arrays. It is compiled once for each generator.
        """
        run = self._run_observed(draw or self.draw_and_trace)
        found = self._outputs(run, params, conditions, seed, 0, rows, None)
        for (samples, (timestep, observed)), num in found:
            observed = jax.tree.map(lambda leaf, num=num: np.asarray(leaf)[:, :, :num], observed)
            yield self._decode(samples, num), (np.asarray(timestep), observed)

    def trace_all(
        self,
        params: Any,
        conditions: Any,
        seed: int,
        rows: np.ndarray | None = None,
        *,
        tokens: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, dict[int, Trace]]:
        """Return the images [N, H, W, C] float32, the timesteps [S] and the trace of each block.

        Args:
          params, conditions, seed, rows: as for `batches`.
          tokens: also return the tokens.
        """
        draw = self.draw_and_trace_tokens if tokens else self.draw_and_trace
        images, observed = zip(*self.traces(params, conditions, seed, rows, draw), strict=True)
        # The batch is the third axis of all arrays.
        traces = jax.tree.map(
            lambda *leaves: np.concatenate(leaves, axis=2), *(trace for _, trace in observed)
        )
        return np.concatenate(images), observed[0][0], traces

    def _run_observed(self, draw: DrawAndObserve) -> jax.stages.Wrapped:
        if draw not in self._observed:
            out_shardings = batch_sharding(self.mesh), replicated(self.mesh)
            self._observed[draw] = self._jit(draw, out_shardings)
        return self._observed[draw]

    @functools.cached_property
    def _observed(self) -> dict[DrawAndObserve, jax.stages.Wrapped]:
        return {}

    def _decode(self, samples: jax.Array, num: int) -> np.ndarray:
        """Decode a batch if there is a codec, and return its first `num` images on the host."""
        images = self.codec.decode(samples) if self.codec else samples
        return _to_host(images)[:num]

    def _outputs(
        self,
        run: Callable[..., Any],
        params: Any,
        conditions: Any,
        seed: int,
        first: int,
        rows: np.ndarray | None,
        indices: np.ndarray | None,
    ) -> Iterator[tuple[Any, int]]:
        """Yield the output of `run` for each batch, and how many of its samples aren't padding."""
        sharded = batch_sharding(self.mesh)
        # Create the key under jit: device_put can't place it on the devices of other processes.
        on_all = replicated(self.mesh)
        key = jax.jit(lambda: stream_key(seed, "generation"), out_shardings=on_all)()
        if rows is None:
            rows = np.arange(len(jax.tree.leaves(conditions)[0]))
        num = len(rows)
        batch_size = self.batch_size_of(num)
        for start in range(first, num, batch_size):
            index = np.arange(start, start + batch_size)
            chosen = rows[np.minimum(index, num - 1)]
            if indices is not None:
                index = indices[np.minimum(index, num - 1)]
            condition = jax.tree.map(
                lambda leaf, chosen=chosen: np.asarray(leaf)[chosen], conditions
            )
            inputs = shard_from_hosts((index.astype(np.int32), condition), sharded)
            with jax.set_mesh(self.mesh):
                output = run(params, key, *inputs)
            yield output, min(batch_size, num - start)


def _to_host(images: jax.Array) -> np.ndarray:
    """Gather a global batch as a NumPy array on every host."""
    if images.is_fully_addressable:
        return jax.device_get(images)
    return multihost_utils.process_allgather(images, tiled=True)


def choose_labels(
    labels: Sequence[int], num: int, num_classes: int, seed: int | None = None
) -> np.ndarray:
    """Choose the class labels of `num` samples.

    Args:
      labels: the classes to choose from; all classes if empty.
      num: number of samples.
      num_classes: number of classes of the model.
      seed: if given, sample the labels uniformly with this seed instead of cycling through them.

    Returns:
      Labels [num] int32.

    Raises:
      UserError: `num` is below 1, or the model doesn't have one of the labels.

    Example:
      >>> choose_labels((3, 1), num=5, num_classes=10).tolist()
      [3, 1, 3, 1, 3]
    """
    if num < 1:
        raise UserError(f"num={num}: must be 1 or more")
    classes = max(num_classes, 1)
    if labels and not num_classes:
        raise UserError("the model has no classes: leave out the labels")
    for label in labels:
        if not 0 <= label < classes:
            raise UserError(f"label {label} is out of range: the model has 0 to {classes - 1}")
    choices = np.array(labels or range(classes), np.int32)
    if seed is None:
        return np.resize(choices, num)
    return np.random.default_rng(seed).choice(choices, num)
