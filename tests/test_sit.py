"""A converted SiT predicts the velocity of the public torch code, with our sign and timestep."""

import itertools
import json

import jax
import numpy as np
import pytest
from etils import epath
from published_weights import convert, golden, torch_state

from tp_jax.config import build_model_config, default
from tp_jax.diffusion import SamplerConfig
from tp_jax.diffusion.flow import RectifiedFlow
from tp_jax.diffusion.samplers import sample
from tp_jax.models import build_model
from tp_jax.models.parameters import abstract_params
from tp_jax.workdir.checkpoints import load_base


@pytest.fixture(scope="module")
def sit(tmp_path_factory):
    """The folder of the converted weights, a model and its parameters."""
    folder = tmp_path_factory.mktemp("sit")
    stderr = convert(folder, torch_state("sit"), "sit", "--heads=4")
    assert "time_input data_share" in stderr and "imagenet256.py:sit" in stderr
    config = default("dit", "flow")
    config.diffusion.shift = 1.0
    described = json.loads((folder / "out/description.json").read_text())["config"]
    config.model.update({k: v for k, v in described.items() if k != "out_channels"})
    config.model.thinking.layers = ()
    model = build_model(build_model_config(config.model, RectifiedFlow(shift=1.0)))
    assert model.config.out_channels == described["out_channels"] == 4
    base = load_base(str(folder / "out"), abstract_params(model)["base"], config.model)
    return folder / "out", config, model, {"base": base}


def test_sit_gives_the_velocity_of_torch(sit):
    _, _, model, params = sit
    arrays = golden("sit")
    x = np.moveaxis(arrays["x"], 1, -1)
    timestep = 1000 * (1 - arrays["t"])
    ours, _ = model.apply({"params": params}, x, timestep, {"label": arrays["y"]})
    theirs = np.moveaxis(arrays["out"], 1, -1)
    error = np.abs(-ours - theirs).max() / np.abs(theirs).max()
    print(f"relative error {error:.1e}")
    assert error < 1e-5
    # At another time the velocity is another one.
    other, _ = model.apply({"params": params}, x, 0.9 * timestep + 50, {"label": arrays["y"]})
    assert np.abs(other - ours).max() > 1e-3


def test_euler_along_our_flow_is_euler_along_that_of_sit(sit):
    """SiT goes from noise at t = 0 to data at t = 1."""
    _, _, model, params = sit
    label = np.array([1, 2])

    def predict(x, timestep, key):
        return model.apply({"params": params}, x, timestep, {"label": label})[0]

    flow, config = RectifiedFlow(shift=1.0), SamplerConfig("euler", steps=4)
    key, index = jax.random.key(0), np.arange(2)
    found = sample(flow, config, predict, key, index, (8, 8, 4))
    none = lambda x, timestep, key: 0 * x  # noqa: E731
    x = sample(flow, config, none, key, index, (8, 8, 4))  # the noise
    times = 1 - flow.schedule(4)
    for t, following in itertools.pairwise(times):
        theirs = -predict(x, np.full(2, 1000 * (1 - t)), None)
        x = x + (following - t) * theirs
    np.testing.assert_allclose(found, x, atol=2e-4)


def test_a_base_with_another_time_input_is_refused(sit, refused):
    folder, config, *_ = sit
    model = dict(config.model.to_dict(), time_input="timestep")
    from tp_jax.messages.errors import UserError

    with pytest.raises(UserError, match="has time_input=data_share, but config.model.time_input="):
        load_base(str(folder), {}, model)
    flags = (f"--workdir={folder}", f"--out={folder.parent / 'e'}", "--format=dit")
    refused("export", *flags, match="no model with config.model.time_input='data_share'")


def test_the_config_for_sit_is_valid(tmp_path):
    from tp_jax import config as config_lib
    from tp_jax.studies.config_files import ConfigFile

    path = epath.Path(__file__).parents[1] / "configs/imagenet256.py"
    config = ConfigFile(str(path), ("sit", "debug")).load()
    built = config_lib.build(config)
    assert (built.objective.shift, built.model.time_input) == (1.0, "data_share")
    assert built.model.out_channels == 4 and built.sampler.sampler == "heun"
