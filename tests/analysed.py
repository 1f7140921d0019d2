"""A trained model with experts and gates that matter, and what the analysis collects of it."""

import dataclasses

import jax
import numpy as np

from tp_jax import analysis
from tp_jax.analysis import blocks, collect
from tp_jax.analysis.samples import Samples, choose_samples
from tp_jax.sampling.generator import Generator
from tp_jax.sampling.loaded import Loaded, load
from tp_jax.sampling.request import make_generator

LATENT_STEPS, NUM, BATCH, SEED = 3, 24, 8, 4


@dataclasses.dataclass(frozen=True)
class Analysed:
    """A model of `conftest.tiny_config` with random thinking layers, and `NUM` samples of it."""

    loaded: Loaded
    generator: Generator
    samples: Samples
    collected: collect.Collected

    @property
    def params(self):
        """The parameters of the model."""
        return self.loaded.params


def analyse(workdir):
    """Collect what the model of a workdir does, after replacing its experts and gates."""
    loaded = load(workdir)
    loaded = dataclasses.replace(loaded, params=randomised(loaded.params))
    generator = make_generator(loaded, batch_size=BATCH, latent_steps=LATENT_STEPS)
    samples = choose_samples(loaded, NUM, SEED)
    collected = collect.collect(generator, loaded.params, samples, SEED)
    return Analysed(loaded, generator, samples, collected)


def randomised(params):
    """Return parameters with random experts and gates; a few train steps leave them small."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if "thinking" not in name or "norm" in name:
            return leaf
        return jax.device_put(rng.normal(size=leaf.shape).astype(np.float32), leaf.sharding)

    return jax.tree_util.tree_map_with_path(draw, params)


def observe(experts, tokens):
    """Return what a device returns for all tokens of some samples.

    Args:
      experts: [S, T, B, N] integers.
      tokens: [S, T, B, N, D].
    """
    means = {
        "entropy": np.zeros(experts.shape[:3]),
        "moves": analysis.moves(tokens).mean(-1),
        "ratios": analysis.ratios(tokens).mean(-1),
        "together": analysis.together(tokens)[:, None],
    }
    return collect.Observed(experts.astype(np.uint16), means, tokens, tokens, experts)


def describe(experts, tokens, samples, thinking, layer, bounds, batch=8):
    """Return `blocks.describe_blocks` of one block for given choices, and what it left out."""
    num, steps = experts.shape[2], experts.shape[0]
    groups = samples.membership(0, 1).shape[1]
    totals = None
    for start in range(0, num, batch):
        part = slice(start, start + batch)
        observed = observe(experts[:, :, part], tokens[:, :, part])
        if totals is None:
            totals = collect.BlockTotals(observed, thinking.experts, groups, bounds, num)
        totals.add(observed, samples.membership(start, observed.expert.shape[2]))
    collected = collect.Collected(np.arange(steps), bounds.steps, {1: totals}, np.zeros(0))
    left_out, params = blocks.LeftOut(), {"thinking": {"layer_1": layer}}
    grid = (2, experts.shape[3] // 2)
    described = blocks.describe_blocks(collected, samples, params, thinking, grid, left_out)
    return described["1"], {entry["part"]: entry["why"] for entry in left_out.as_json()}, totals
