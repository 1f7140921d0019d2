"""A model, sampler, data source or suite is added by one file and one line in its registry."""

import json

import jax
import pytest
from conftest import run_entry
from etils import epath
from toys.model import PatchConfig, PatchModel
from toys.sampler import MIDPOINT
from toys.source import GREY, GREYS
from toys.suite import BRIGHTNESS

from tp_jax.config import default
from tp_jax.data.sources import SOURCES
from tp_jax.diffusion.samplers import SAMPLERS
from tp_jax.evals import SUITES
from tp_jax.models import MODELS
from tp_jax.parallel.mesh import create_mesh
from tp_jax.performance.programs import trace
from tp_jax.train.loop import train


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Register the toys for the tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "patches", (PatchConfig, PatchModel))
        patch.setitem(SAMPLERS, "midpoint", MIDPOINT)
        patch.setitem(SOURCES, "grey", GREY)
        patch.setitem(SUITES, "brightness", BRIGHTNESS)
        yield


def grey_config():
    config = default("patches", "flow")
    config.model.update(image_size=8, channels=1, patch=4, depth=1, width=16, heads=2)
    config.model.thinking.layers = ()
    config.data.source = "grey"
    config.sampling.update(sampler="midpoint", steps=8, guidance_scale=1.0)
    config.train.update(steps=120, batch_size=16, log_every=120, samples=4, ema_decay=0.9)
    config.optimizer.learning_rate = 2e-2
    config.evaluation.update(suite="brightness", every_steps=60, batch_size=4)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("extended")) / "run"
    train(grey_config(), workdir)
    return workdir


def test_training_uses_the_new_suite_and_sampler(workdir):
    assert (workdir / "samples" / "00000120.png").exists()
    found = sorted(path.name for path in (workdir / "evaluations").glob("*.json"))
    assert found == ["00000060.json", "00000120.json"]
    scores = json.loads((workdir / "evaluations" / found[-1]).read_text())
    assert scores == {f"class_{i}": pytest.approx(grey, abs=25) for i, grey in enumerate(GREYS)}


def test_entries_accept_the_new_components(workdir, tmp_path, refused):
    out = tmp_path / "grey.npz"
    code, _, stderr = run_entry("sample", f"--workdir={workdir}", f"--out={out}", "--labels=1")
    assert code == 0 and out.exists(), stderr
    arguments = ["--suite=brightness", f"--workdir={workdir}"]
    code, _, stderr = run_entry("evaluate", *arguments, "--halved", f"--out={tmp_path / 's.json'}")
    assert code == 0, stderr
    halved = json.loads((tmp_path / "s.json").read_text())
    whole = json.loads((workdir / "evaluations" / "00000120.json").read_text())
    assert halved == {name: pytest.approx(value / 2) for name, value in whole.items()}
    code, stdout, _ = run_entry("evaluate", "--suite=brightness", "--help")
    assert code == 0 and "--[no]halved" in stdout and "--reference" not in stdout
    assert "samples images and scores them" in stdout
    refused("evaluate", "--suite=adm", "--halved", match="--halved isn't .* but of brightness")


def test_predicted_flops_count_the_predictions_of_the_new_sampler():
    config = grey_config()
    mesh = create_mesh(config.mesh, jax.devices()[:1])
    assert "loss" in trace(config, "train", mesh).traced.out_info[1]
    midpoint = trace(config, "sample", mesh).model_flops
    config.sampling.sampler = "euler"
    assert midpoint == 2 * trace(config, "sample", mesh).model_flops > 0
