"""Fixtures: a tiny config, and one workdir trained with it for all tests that read one."""

import os

# Before jax is imported: four devices, so that meshes can be tested anywhere, and programs that
# compile fast rather than run fast.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)

import jax
import pytest
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from tp_jax.config import default
from tp_jax.train.loop import train

flags.FLAGS.mark_as_parsed()


def tiny_config(**train_fields) -> ConfigDict:
    """Digits, four blocks of width 16, two of which think."""
    config = default("dit", "flow")
    config.model.update(
        image_size=8, channels=1, num_classes=10, patch=4, depth=4, width=16, heads=2
    )
    config.model.thinking.update(layers=(1, 2), rank=2, gate_width=8)
    config.train.update(
        steps=6, batch_size=8, ema_decay=0.9, log_every=2, sample_every=6, samples=4
    )
    config.train.update(**train_fields)
    config.optimizer.learning_rate = 1e-2
    config.checkpoint.every_steps = 3
    config.sampling.update(sampler="euler", steps=3, guidance_scale=1.5)
    return config


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> epath.Path:
    """A workdir trained for six steps. Read it only."""
    workdir = epath.Path(tmp_path_factory.mktemp("trained")) / "run"
    train(tiny_config(), workdir)
    return workdir


@pytest.fixture
def one_device():
    """The first of the virtual devices, as a list."""
    return jax.devices()[:1]
