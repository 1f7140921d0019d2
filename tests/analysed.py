"""A trained model with experts and gates that matter, and what the analysis collects of it."""

import dataclasses

import jax
import numpy as np

from tp_jax.analysis import collect
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
