"""Sampling from a workdir: files, labels, determinism, and packages that it must not need."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tp_jax.diffusion import SamplerConfig, samplers
from tp_jax.diffusion.flow import RectifiedFlow
from tp_jax.diffusion.gaussian import GaussianDiffusion
from tp_jax.messages.errors import UserError
from tp_jax.pictures.grids import make_grid, to_uint8
from tp_jax.pictures.reading import read_rgb
from tp_jax.sampling import parts
from tp_jax.sampling.draw import Drawing, draw_samples
from tp_jax.sampling.generator import Generator, choose_labels
from tp_jax.sampling.loaded import load
from tp_jax.sampling.request import make_generator


def sample_npz(workdir, out, **fields):
    """Sample to an .npz; return its images and labels."""
    draw_samples(Drawing(workdir, epath.Path(out), **fields))
    with np.load(out) as file:
        return file["arr_0"], file["arr_1"]


def test_an_npz_has_images_and_labels(trained, tmp_path):
    images, labels = sample_npz(trained, tmp_path / "a.npz", num=7, labels=(3, 1), batch_size=4)
    assert images.shape == (7, 8, 8, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(labels, [3, 1, 3, 1, 3, 1, 3])
    assert len(np.unique(images.reshape(7, -1), axis=0)) == 7


def test_the_same_seed_gives_the_same_bytes(trained, tmp_path):
    for name in ("a", "b"):
        draw_samples(Drawing(trained, epath.Path(tmp_path / f"{name}.npz"), num=5, batch_size=4))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    other, _ = sample_npz(trained, tmp_path / "c.npz", num=5, batch_size=4, seed=1)
    assert (other != np.load(tmp_path / "a.npz")["arr_0"]).any()


def test_resumed_sampling_gives_the_same_images(trained, tmp_path, monkeypatch):
    whole = Drawing(trained, epath.Path(tmp_path / "whole.npz"), num=11, batch_size=4)
    draw_samples(whole)
    stopped = dataclasses.replace(whole, out=epath.Path(tmp_path / "stopped.npz"))
    monkeypatch.setattr(parts, "PART_SAMPLES", 4)
    batches, firsts = Generator.batches, []

    def stopping(self, params, conditions, seed, first=0, rows=None):
        firsts.append(first)
        for number, batch in enumerate(batches(self, params, conditions, seed, first, rows)):
            if len(firsts) == 1 and number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Generator, "batches", stopping)
    with pytest.raises(KeyboardInterrupt):
        draw_samples(stopped)
    assert not stopped.out.exists()
    with pytest.raises(UserError, match="parts of another run: seed was 0, now 1; finish"):
        draw_samples(dataclasses.replace(stopped, seed=1))
    # A part is written under a temporary name, so one left by a kill is ignored.
    folder = tmp_path / "stopped.npz.parts"
    (folder / "00000008.tmp").write_bytes(b"half")
    # A part after a gap does not belong to the samples.
    (folder / "00000100.npy").write_bytes((folder / "00000004.npy").read_bytes())
    draw_samples(dataclasses.replace(stopped, batch_size=8))
    assert firsts == [0, 8]
    # Another batch size may change the last bit of a float, and so a pixel by one.
    found, wanted = (np.load(drawing.out)["arr_0"] for drawing in (stopped, whole))
    np.testing.assert_array_equal(found[:8], wanted[:8])
    np.testing.assert_allclose(found[8:].astype(int), wanted[8:], atol=1)
    assert [path.name for path in tmp_path.iterdir() if "parts" in path.name] == []


def test_an_npz_has_the_bytes_that_numpy_writes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3), np.uint8)
    labels = np.arange(7, dtype=np.int32)
    opened = parts.open_parts(epath.Path(tmp_path / "ours.npz"), {})
    opened.add(images[:5])
    opened.add(images[5:])
    opened.join(labels)
    np.savez(tmp_path / "numpy.npz", arr_0=images, arr_1=labels)
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_labels_are_cycled_or_sampled_uniformly():
    np.testing.assert_array_equal(choose_labels((3, 1), 5, 10), [3, 1, 3, 1, 3])
    counts = np.bincount(choose_labels((), 5_000, 10), minlength=10)
    assert (counts == 500).all()
    drawn = choose_labels((), 5_000, 10, seed=0)
    counts = np.bincount(drawn, minlength=10)
    assert 400 < counts.min() < counts.max() < 600
    np.testing.assert_array_equal(drawn, choose_labels((), 5_000, 10, seed=0))
    assert (drawn != choose_labels((), 5_000, 10, seed=1)).any()


def test_a_sample_does_not_depend_on_the_number_of_samples(trained):
    loaded = load(trained)
    labels = {"label": choose_labels((), 8, 10)}
    large, small = (
        np.concatenate(
            list(make_generator(loaded, batch_size=size).batches(loaded.params, part, 0))
        )
        for size, part in ((8, labels), (4, {"label": labels["label"][:5]}))
    )
    np.testing.assert_allclose(small, large[:5], atol=1e-5)


def test_a_folder_gets_pngs_and_a_grid(trained, tmp_path):
    draw_samples(Drawing(trained, epath.Path(tmp_path / "out"), num=5, batch_size=8))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"{i:05d}_class{i}.png" for i in range(5)), "drawing.json", "grid.png"]
    assert read_rgb(epath.Path(tmp_path / "out" / "00000_class0.png")).shape == (8, 8, 3)


def test_sampling_options_change_the_samples(trained, tmp_path):
    plain, _ = sample_npz(trained, tmp_path / "a.npz", num=4, batch_size=4)
    changes = {
        "sampler": dict(sampler_changes={"sampler": "heun"}),
        "steps": dict(sampler_changes={"steps": 5}),
        "guidance": dict(sampler_changes={"guidance_scale": 4.0}),
        "checkpoint": dict(checkpoint=3),
        "ema": dict(ema=False),
    }
    for name, fields in changes.items():
        images, _ = sample_npz(trained, tmp_path / f"{name}.npz", num=4, batch_size=4, **fields)
        assert (images != plain).any(), name


def test_more_latent_steps_change_the_prediction(trained):
    # After six updates the difference is too small to show in uint8 pixels.
    loaded, labels = load(trained), {"label": choose_labels((), 4, 10)}

    def draw(steps):
        generator = make_generator(loaded, batch_size=4, latent_steps=steps)
        return next(generator.batches(loaded.params, labels, 0))

    assert (draw(5) != draw(2)).any()
    np.testing.assert_array_equal(draw(2), draw(None))


def test_ema_and_parameters_are_both_restored(trained):
    averaged, plain = load(trained).params, load(trained, ema=False).params
    assert jax.tree.structure(averaged) == jax.tree.structure(plain)
    different = [
        bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (averaged, plain)), strict=True)
    ]
    assert any(different)


def test_sampling_compiles_once(trained, monkeypatch):
    loaded = load(trained)
    generator = make_generator(loaded, batch_size=4)
    run = generator.compiled()
    monkeypatch.setattr(type(generator), "compiled", lambda self: run)
    labels = {"label": choose_labels((), 11, 10)}
    assert [len(b) for b in generator.batches(loaded.params, labels, 0)] == [4, 4, 3]
    assert run._cache_size() == 1


def test_to_uint8_rounds_as_dit_does():
    x = np.array([-1.5, -1.0, 0.0, 0.999, 1.0, 2.0])
    np.testing.assert_array_equal(to_uint8(x), [0, 0, 128, 255, 255, 255])
    assert to_uint8(np.array([0.0039]))[0] == 128  # 128.497 is truncated


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused_by_number(value):
    images = np.zeros((3, 2, 2, 1), np.float32)
    images[1, 0, 1, 0] = value
    with pytest.raises(UserError, match=rf"sample 65 has the value {value} at \[0, 1, 0\]: the mo"):
        to_uint8(images, first=64)


def test_a_grid_is_filled_row_by_row():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 1), np.uint8)
    grid = make_grid(images, columns=3)
    assert grid.shape == (2 * 34 + 2, 3 * 34 + 2, 1)
    corners = [grid[2 + 34 * (i // 3), 2 + 34 * (i % 3), 0] for i in range(5)]
    assert corners == [0, 1, 2, 3, 4]


def test_sampling_needs_neither_tensorflow_nor_torch(trained, tmp_path):
    block = (
        "import importlib.machinery, runpy, sys\n"
        "finder = importlib.machinery.PathFinder\n"
        "find, absent = finder.find_spec, ('tensorflow', 'torch', 'tensorboard')\n"
        "finder.find_spec = lambda name, *rest: (\n"
        "    None if name.split('.')[0] in absent else find(name, *rest))\n"
        "sys.argv = ['sample', *sys.argv[1:]]\n"
        "runpy.run_module('tp_jax.sample', run_name='__main__')\n"
    )
    out = tmp_path / "out"
    flags = [f"--workdir={trained}", f"--out={out}", "--num=3", "--batch_size=4", "--no-ema"]
    done = subprocess.run([sys.executable, "-c", block, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "grid.png").exists()
    assert "sampling: 100%" in done.stderr


@pytest.mark.parametrize(
    "objective, sampler, eta, draws",
    [
        (RectifiedFlow(), "euler", 0.0, 1),
        (RectifiedFlow(), "euler", 1.0, 2),
        (RectifiedFlow(), "heun", 0.0, 1),
        (RectifiedFlow(), "dpmpp_2m", 0.0, 1),
        (GaussianDiffusion(), "dpmpp_2m", 0.0, 1),
        (GaussianDiffusion(), "ddim", 0.0, 1),
        (GaussianDiffusion(), "ddim", 0.5, 2),
        (GaussianDiffusion(), "ddpm", 0.0, 2),
    ],
)
def test_only_samplers_that_add_noise_draw_it_in_their_steps(
    objective, sampler, eta, draws, monkeypatch
):
    """The initial noise is drawn before the scan over steps, all other noise in its body."""
    config, streams = SamplerConfig(sampler=sampler, steps=4, eta=eta), []

    def counted(key, index, stream, shape):
        streams.append(stream)
        return draw(key, index, stream, shape)

    def predict(x, timestep, key):
        return jnp.concatenate([x] * objective.out_channels(1), axis=-1)

    draw = samplers.sample_noise
    monkeypatch.setattr(samplers, "sample_noise", counted)
    jax.eval_shape(
        lambda key: samplers.sample(objective, config, predict, key, jnp.arange(2), (4, 4, 1)),
        jax.random.key(0),
    )
    # jax may trace the body more than once.
    assert 1 + (len(streams) > 1) == draws
