"""What training reports: TensorBoard files, read back by TensorBoard, and lines on the terminal."""

import types

import numpy as np
import pytest
from conftest import tiny_config
from etils import epath
from resuming import FakeWriter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tp_jax
from tp_jax.pictures.grids import to_uint8
from tp_jax.pictures.maps import routing_maps
from tp_jax.pictures.reading import read_rgb
from tp_jax.thinking import ThinkingConfig
from tp_jax.train import metrics, summary
from tp_jax.train.optimizer import make_schedule
from tp_jax.train.periodic import Evaluation, Every, Log, SampleGrid


@pytest.fixture(scope="module")
def events(trained):
    found = EventAccumulator(str(trained))
    found.Reload()
    return found


def test_tensorboard_has_scalars_for_every_report(events):
    tags = events.Tags()["scalars"]
    expected = {"loss", "grad_norm", "learning_rate", "images_per_second", "gate_entropy/layer_1"}
    assert expected | {"expert_use/layer_2/expert_1"} <= set(tags)
    for tag in tags:
        points = events.Scalars(tag)
        assert [point.step for point in points] == [2, 4, 6]
        assert np.isfinite([point.value for point in points]).all()


class StandInWindow:
    """A window of metrics without a training run."""

    def close(self):
        return means(2, 2)


def test_the_learning_rate_is_that_of_the_reported_step():
    """A linear warm-up over 4 steps: the optimizer's first update uses 0, the second a quarter."""
    config, writer = tiny_config(), FakeWriter()
    config.optimizer.update(learning_rate=1.0, warmup_steps=4)
    schedule = make_schedule(config.optimizer, 6)
    log = Log(Every(1, 6), StandInWindow(), schedule, writer)
    for train_step in range(1, 7):
        log.run(train_step)
    rates = [writer.scalars[train_step]["learning_rate"] for train_step in range(1, 7)]
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.75, 1, 1], rtol=1e-6)


def test_tensorboard_has_the_sample_grid(events, trained, tmp_path):
    (image,) = events.Images("samples")
    (tmp_path / "grid.png").write_bytes(image.encoded_image_string)
    assert image.step == 6
    found, saved = read_rgb(tmp_path / "grid.png"), read_rgb(trained / "samples" / "00000006.png")
    np.testing.assert_array_equal(found, saved)


def test_tensorboard_has_the_routing_of_every_thinking_block(events, trained, tmp_path):
    """The map beside each image has the experts that `Model.trace` finds for the same noise."""
    model = tp_jax.Model.load(trained)
    config = model.loaded.config
    found = model.trace(config.train.samples, seed=config.seed)
    for block in model.thinking.layers:
        (image,) = events.Images(f"expert_maps/layer_{block}")
        (tmp_path / "maps.png").write_bytes(image.encoded_image_string)
        expected = routing_maps(
            found.images[:8],
            found.experts[block][:, :, :8],
            found.timesteps,
            found.grid,
            model.thinking.experts,
        )
        np.testing.assert_array_equal(read_rgb(tmp_path / "maps.png"), expected)


def test_tensorboard_has_the_config_as_text(events):
    (text,) = events.Tensors("config/text_summary")[0].tensor_proto.string_val
    text = text.decode()
    assert "learning_rate: 0.01\n" in text and "latent_steps: 2\n" in text


def means(blocks, experts):
    found = {
        "loss": np.float32(0.51234),
        "grad_norm": np.float32(12.3456),
        "images_per_second": 123_456.7,
        "seconds_per_step": 0.25,
    }
    found |= {f"gate_entropy/layer_{i}": np.float32(0.6) for i in range(blocks)}
    return found | {f"expert_use/layer_{i}": np.full(experts, 1 / experts) for i in range(blocks)}


@pytest.mark.parametrize(("blocks", "experts"), [(0, 2), (1, 2), (2, 2), (3, 4), (28, 2), (1, 64)])
def test_report_lines_are_aligned_and_at_most_120_characters_wide(blocks, experts):
    line = metrics.line(399_900, 400_000, means(blocks, experts))
    assert len(line) <= metrics.MAX_WIDTH
    titles = metrics.header()
    # Right-aligned columns end where their title ends.
    for title, cell in (("time left", "25s"), ("loss", "0.5123"), ("grad norm", "12.346")):
        assert titles.index(title) + len(title) == line.index(cell) + len(cell)
    if (blocks, experts) == (2, 2):
        assert line.endswith("block 0 50/50%, block 1 50/50%")
    if (blocks, experts) == (28, 2):
        assert line.endswith("28 blocks 50 to 50%")


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [("thinking", "{base}, frozen; its own"), ("all", "{base}, trained too (config.train.train")],
)
def test_the_log_says_whether_the_base_is_frozen(trainable, expected, trained):
    config = tiny_config(trainable=trainable)
    config.init.base = str(trained)
    line = summary._base(types.SimpleNamespace(config=config))
    assert expected.format(base=trained) in line
    # Blocks 1 and 2 of the base think.
    assert line.endswith("its own thinking layers are not used")


def test_pictures_that_are_not_finite_do_not_end_training(tmp_path, capsys):
    nan = np.full((2, 8, 8, 1), np.nan)
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(seed=0),
        workdir=epath.Path(tmp_path),
        built=types.SimpleNamespace(
            model=types.SimpleNamespace(thinking=ThinkingConfig(layers=()))
        ),
    )
    grid = object.__new__(SampleGrid)
    grid._generator = types.SimpleNamespace(batches=lambda *arguments: [nan])
    grid._model, grid._conditions, grid._writer = model, {}, None
    grid.run(3, {})
    model.with_params = lambda params, train_step: None
    Evaluation(None, model, lambda loaded, out: to_uint8(nan), FakeWriter()).run(4, {})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("warning: no picture of the samples of step 3: sample 0 has the val")
    assert lines[1].startswith("warning: no evaluation of step 4: sample 0 has the value nan at [0")
    assert not list(tmp_path.iterdir())


def test_the_log_says_whether_a_resumed_run_ends_with_the_same_bits():
    def line(platform, deterministic):
        device = types.SimpleNamespace(platform=platform, device_kind="kind")
        mesh = types.SimpleNamespace(devices=np.array([device]))
        model = types.SimpleNamespace(mesh=mesh)
        config = tiny_config(deterministic=deterministic)
        return summary._determinism(types.SimpleNamespace(model=model, config=config))

    for platform, deterministic in (("cpu", False), ("tpu", False), ("gpu", True)):
        assert "ends with the same bits" in line(platform, deterministic)
    assert "may differ" in line("gpu", False)
