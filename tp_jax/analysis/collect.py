"""Sample a model batch by batch, and add up what its thinking layers do, in bounded memory.

S sampler steps, T latent steps, B samples per batch, N vision tokens, D width, M experts, G groups.
Of every batch, the device keeps the choices and means over tokens, and k tokens of each sample at P
sampler steps. The host keeps tables of counts, and a bounded number of samples and tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.analysis import statistics, trajectories
from tp_jax.analysis.samples import Samples
from tp_jax.messages.progress import progress_bar
from tp_jax.models.parameters import Params
from tp_jax.parallel.randomness import sample_keys, stream_key
from tp_jax.pictures.grids import to_uint8
from tp_jax.pictures.tables import picked
from tp_jax.sampling.generator import Generator
from tp_jax.thinking.layer import RoutingStats

# Samples whose images and choices are kept, for pictures and interventions.
SHOWN = 64
# Sampler steps at which tokens are kept.
TOKEN_STEPS = 5
# Bytes of tokens of all blocks together, and bounds of the number of tokens of one block.
TOKEN_BYTES, MIN_TOKENS, MAX_TOKENS = 2**28, 64, 4_096
# Tokens whose Δ are computed for every expert.
INPUT_TOKENS = 64
# Samples that are kept for permutation tests, and numbers in each table of their choices.
MAX_UNITS, MIN_UNITS, UNIT_NUMBERS = 4_096, 64, 2**20


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How much is kept.

    Attributes:
      steps: [P] the sampler steps at which tokens are kept.
      per_sample: number k of tokens of a sample.
      tokens: number K of tokens of a block.
      units: number U of samples for permutation tests.
    """

    steps: tuple[int, ...]
    per_sample: int
    tokens: int
    units: int


def choose_bounds(generator: Generator, latent_steps: int, num: int) -> Bounds:
    """Choose how much to keep of `num` samples; the bounds stop growing with `num`."""
    config = generator.model.config
    thinking, sampler_steps = config.thinking, generator.sampler.steps
    steps = tuple(picked(sampler_steps, TOKEN_STEPS))
    bytes_each = 4 * len(thinking.layers) * len(steps) * latent_steps * config.width
    wanted = int(np.clip(TOKEN_BYTES // bytes_each, MIN_TOKENS, MAX_TOKENS))
    per_sample = min(config.tokens, -(-wanted // num))
    levels = max(sampler_steps, latent_steps, config.tokens)
    units = int(np.clip(UNIT_NUMBERS // (levels * thinking.experts), MIN_UNITS, MAX_UNITS))
    return Bounds(steps, per_sample, min(wanted, per_sample * num), min(units, num))


class Observed(NamedTuple):
    """What a device returns of one thinking layer, for one sampler step or with an axis S of them.

    Attributes:
      expert: [T, B, N] uint16, the chosen experts; M for tokens that have halted.
      means: {name: [steps, B] float32}, means over the tokens of each sample. "entropy" of the gate
        has T steps, "moves" T - 1, "ratios" T - 2, and "together" 1. The entropy leaves out tokens
        that have halted.
      tokens, inputs: [T, B, k, D] float32, ã and Mod(LN(ã)) of k tokens of each sample.
      token_expert: [T, B, k], their experts.
    """

    expert: Any
    means: dict[str, Any]
    tokens: Any
    inputs: Any
    token_expert: Any


class Observer:
    """Samples with a generator, and reduces the traces on the device."""

    def __init__(self, generator: Generator, bounds: Bounds) -> None:
        self._generator, self._bounds = generator, bounds

    def draw(
        self, params: Params, key: jax.Array, index: jax.Array, condition: dict[str, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, dict[int, Observed]]]:
        """Sample one batch; an argument of `Generator.traces`."""
        samples, (timesteps, observed) = self._generator.draw_and_observe(
            params, key, index, condition, self._observe
        )
        chosen = np.array(self._bounds.steps)
        kept = {
            block: layer._replace(
                tokens=layer.tokens[chosen],
                inputs=layer.inputs[chosen],
                token_expert=layer.token_expert[chosen],
            )
            for block, layer in observed.items()
        }
        return samples, (timesteps, kept)

    def _observe(self, found: Mapping[int, RoutingStats], index: jax.Array) -> dict[int, Observed]:
        return {block: self._observe_layer(stats, index) for block, stats in found.items()}

    def _observe_layer(self, stats: RoutingStats, index: jax.Array) -> Observed:
        # The trace was asked for, so that no field is None.
        tokens, expert = jnp.asarray(stats.tokens, jnp.float32), jnp.asarray(stats.expert)
        count = tokens.shape[2]
        keys = sample_keys(stream_key(0, "tokens of the analysis"), index)

        def choose(key: jax.Array) -> jax.Array:
            return jax.random.permutation(key, count)[: self._bounds.per_sample]

        place = jax.vmap(choose)(keys)[None, :, :, None]

        def pick(values: Any) -> jax.Array:
            return jnp.take_along_axis(values, place, axis=2)

        noiseless = jnp.asarray(stats.noiseless)
        live = expert < noiseless.shape[-1]
        means = {
            "entropy": statistics.mean_of_live(statistics.entropy(noiseless), live),
            "moves": trajectories.moves(tokens).mean(-1),
            "ratios": jnp.nanmean(trajectories.ratios(tokens), -1),
            "together": trajectories.together(tokens)[None],
        }
        return Observed(
            expert.astype(jnp.uint16),
            means,
            pick(tokens),
            pick(jnp.asarray(stats.inputs, jnp.float32)),
            pick(expert[..., None])[..., 0],
        )


class Reservoir:
    """Some of many items, spread evenly over them, so that memory doesn't grow with their number.

    Attributes:
      kept: {name: array with a leading axis of items}.
    """

    def __init__(self, wanted: int, total: int) -> None:
        """Keep `wanted` of `total` items."""
        self._wanted, self._total, self._seen, self._filled = min(wanted, total), total, 0, 0
        self.kept: dict[str, np.ndarray] = {}

    def add(self, num: int, values: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> None:
        """Add the next `num` items.

        Args:
          num: number of items.
          values: returns the arrays of the items with the given numbers in 0 … num-1.
        """
        items = np.arange(self._seen, self._seen + num, dtype=np.int64)
        before, after = (i * self._wanted // self._total for i in (items, items + 1))
        chosen = np.flatnonzero(after > before)
        for name, array in values(chosen).items():
            if name not in self.kept:
                self.kept[name] = np.zeros((self._wanted, *array.shape[1:]), array.dtype)
            self.kept[name][self._filled : self._filled + len(chosen)] = array
        self._seen, self._filled = self._seen + num, self._filled + len(chosen)


class BlockTotals:
    """What is known of one block, summed over the samples so far.

    Attributes:
      num: samples so far.
      by_step, by_group, by_place: counts of the experts, [S, T, M], [G, T, M] and [T, N, M] int64.
      sums, counts: {name: [S, steps]} sums of `Observed.means` and their number without NaN; also
        "kept", the share of tokens that keep their expert, with T - 1 steps.
      units: of samples, their choices "step" [U, S, M], "latent_step" [U, T, M] and "place"
        [U, N, M], and "group" [U, G] bool, their groups.
      tokens: of tokens, "tokens" [K, P, T, D] and "expert" [K, P, T].
      inputs: of tokens, "inputs" [≤ K, P, T, D].
      shown: [S, T, ≤ SHOWN, N] uint16, the choices of the first samples.
    """

    def __init__(
        self, first: Observed, experts: int, groups: int, bounds: Bounds, num: int
    ) -> None:
        """Prepare to add `num` samples; `first` is the first batch, for its shapes."""
        steps, latent_steps, _, tokens = first.expert.shape
        self.num, self._experts = 0, experts
        self.by_step = np.zeros((steps, latent_steps, experts), np.int64)
        self.by_group = np.zeros((groups, latent_steps, experts), np.int64)
        self.by_place = np.zeros((latent_steps, tokens, experts), np.int64)
        sizes = {name: mean.shape[1] for name, mean in first.means.items()}
        sizes["kept"] = latent_steps - 1
        self.sums = {name: np.zeros((steps, size)) for name, size in sizes.items()}
        self.counts = {name: np.zeros_like(sums) for name, sums in self.sums.items()}
        self.units = Reservoir(bounds.units, num)
        self.tokens = Reservoir(bounds.tokens, num * bounds.per_sample)
        self.inputs = Reservoir(min(bounds.tokens, INPUT_TOKENS), num * bounds.per_sample)
        self.shown = np.zeros((steps, latent_steps, 0, tokens), np.uint16)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all arrays."""
        arrays = [self.by_step, self.by_group, self.by_place, self.shown]
        arrays += [*self.sums.values(), *self.counts.values()]
        for reservoir in (self.units, self.tokens, self.inputs):
            arrays += reservoir.kept.values()
        return sum(array.nbytes for array in arrays)

    def mean(self, name: str) -> np.ndarray:
        """Return the mean over samples of one of `sums`: [S, steps], NaN where there is none."""
        counts = self.counts[name]
        nothing = np.full(counts.shape, np.nan)
        return np.divide(self.sums[name], counts, out=nothing, where=counts > 0)

    def add(self, batch: Observed, membership: np.ndarray) -> None:
        """Add a batch with a leading axis S; `membership` [B, G] bool has its samples' groups."""
        expert, num, count = batch.expert, batch.expert.shape[2], self._experts
        per_sample = statistics.count_experts(expert, count, (0, 3))  # [T, B, M]
        self.by_step += statistics.count_experts(expert, count, (2, 3))
        self.by_place += statistics.count_experts(expert, count, (0, 2))
        self.by_group += np.einsum("bg,tbm->gtm", membership.astype(np.int64), per_sample)
        same = expert[:, 1:] == expert[:, :-1]
        kept = statistics.mean_of_live(same, expert[:, 1:] < count)
        means = {**batch.means, "kept": kept}
        for name, values in means.items():
            finite = np.isfinite(values)
            self.sums[name] += np.where(finite, values, 0).sum(-1)
            self.counts[name] += finite.sum(-1)
        self.shown = np.concatenate([self.shown, expert], axis=2)[:, :, :SHOWN]

        def of_samples(chosen: np.ndarray) -> dict[str, np.ndarray]:
            of = expert[:, :, chosen]
            return {
                "step": statistics.count_experts(of, count, (1, 3)).swapaxes(0, 1),
                "latent_step": per_sample[:, chosen].swapaxes(0, 1),
                "place": statistics.count_experts(of, count, (0, 1)),
                "group": membership[chosen],
            }

        def of_tokens(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
            """[P, T, B, k, …] -> [chosen, P, T, …], with tokens numbered through the samples."""
            flat = values.reshape(*values.shape[:2], -1, *values.shape[4:])
            return np.moveaxis(flat[:, :, chosen], 2, 0)

        tokens = num * batch.token_expert.shape[3]
        self.units.add(num, of_samples)
        self.tokens.add(
            tokens,
            lambda chosen: {
                "tokens": of_tokens(batch.tokens, chosen),
                "expert": of_tokens(batch.token_expert, chosen),
            },
        )
        self.inputs.add(tokens, lambda chosen: {"inputs": of_tokens(batch.inputs, chosen)})
        self.num += num


@dataclasses.dataclass(frozen=True)
class Collected:
    """What was collected of all samples.

    Attributes:
      timesteps: [S] diffusion timestep of each sampler step.
      steps: [P] the sampler steps at which tokens were kept.
      blocks: totals of each block.
      images: uint8 [≤ SHOWN, H, W, C], the first samples.
    """

    timesteps: np.ndarray
    steps: tuple[int, ...]
    blocks: dict[int, BlockTotals]
    images: np.ndarray


def collect(generator: Generator, params: Params, samples: Samples, seed: int) -> Collected:
    """Sample all samples, and collect what the thinking layers do.

    Args:
      generator: of a model with thinking layers.
      params: its parameters.
      samples: what to sample.
      seed: seed of the noise.

    Raises:
      NotFiniteError: a sample isn't finite.
    """
    thinking = generator.model.config.thinking
    latent_steps = generator.latent_steps or thinking.latent_steps
    bounds = choose_bounds(generator, latent_steps, samples.num)
    timesteps, done = np.zeros(0), 0
    blocks: dict[int, BlockTotals] = {}
    images: list[np.ndarray] = []
    draw = Observer(generator, bounds).draw
    with progress_bar(samples.num, "analysing") as bar:
        traces = generator.traces(params, samples.conditions, seed, samples.rows, draw)
        for batch, (sampled_at, observed) in traces:
            timesteps, membership = sampled_at, samples.membership(done, len(batch))
            for block, layer in observed.items():
                if block not in blocks:
                    groups = membership.shape[1]
                    blocks[block] = BlockTotals(
                        layer, thinking.experts, groups, bounds, samples.num
                    )
                blocks[block].add(layer, membership)
            if done < SHOWN:
                images.append(to_uint8(batch[: SHOWN - done], done))
            done += len(batch)
            bar.update(len(batch))
    return Collected(timesteps, bounds.steps, blocks, np.concatenate(images))
