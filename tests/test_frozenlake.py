"""FrozenLake: maps, paths, frames and the frame reader, compared with gymnasium's environment."""

import itertools
import os
import sys

import numpy as np
import pytest
from small_configs import tiny_frozenlake

from tp_jax.data.sources.frozenlake import make_frozenlake
from tp_jax.messages.errors import UserError
from tp_jax.worlds.frozenlake import frames as frames_lib
from tp_jax.worlds.frozenlake import maps
from tp_jax.worlds.frozenlake.frames import Canvas, render
from tp_jax.worlds.frozenlake.maps import check_map, distances_to_goal, is_held_out, make_map
from tp_jax.worlds.frozenlake.settings import FrozenLakeConfig, make_canvas

# Number of frames to compare. TP_JAX_FRAMES=10000 takes some minutes on one core.
FRAMES = int(os.environ.get("TP_JAX_FRAMES", "100"))


@pytest.mark.parametrize("tile", [8, 16])
def test_frames_equal_those_of_the_environment_and_are_read_exactly(tile):
    canvas, rng, read = Canvas(8, tile), np.random.default_rng(tile), 0
    while read < (FRAMES if tile == 8 else 30):
        size = int(rng.integers(2, canvas.cells + 1))
        desc = make_map(rng, size, (0.5, 0.95), held_out=bool(rng.integers(2)))
        cells = list(distances_to_goal(desc))
        cells = [cells[i] for i in rng.permutation(len(cells))[:10]]
        corner = tuple(int(v) for v in rng.integers(canvas.cells - size + 1, size=2))
        top, left = corner[0] * tile, corner[1] * tile
        inside = (slice(top, top + size * tile), slice(left, left + size * tile))
        for cell, rendered in zip(cells, render(desc, cells, tile), strict=True):
            frame = canvas.draw(desc, cell, corner)
            np.testing.assert_array_equal(frame[inside], rendered)
            outside = frame.copy()
            outside[inside] = frames_lib.CANVAS_GREY
            assert (outside == frames_lib.CANVAS_GREY).all()
            reading = canvas.read(frame, (size, size), corner)
            assert (reading.desc, reading.agents) == (desc, (cell,))
            assert (reading.unreadable, reading.outside) == (0, 0)
            read += 1


def test_reader_accepts_noise_and_reports_ambiguous_cells():
    canvas, rng = Canvas(5, 8), np.random.default_rng(0)
    desc = ("SFFF", "FHFH", "FFFH", "HFFG")
    frame = canvas.draw(desc, (1, 2), (1, 0))
    noisy = frame + rng.normal(0, 0.03, frame.shape)
    assert canvas.read(noisy, (4, 4), (1, 0)).agents == ((1, 2),)
    # The agent is half visible in two cells: neither cell is readable.
    half = (frame + canvas.draw(desc, (2, 2), (1, 0))) / 2
    assert canvas.read(half, (4, 4), (1, 0)).unreadable == 2
    grey = frame.copy()
    grey[8:16, :8] = 0.5
    assert canvas.read(grey, (4, 4), (1, 0)).unreadable == 1
    both = canvas.draw(desc, (1, 2), (1, 0))
    both[8 * 3 : 8 * 4, 8:16] = canvas.draw(desc, (2, 1), (1, 0))[8 * 3 : 8 * 4, 8:16]
    assert canvas.read(both, (4, 4), (1, 0)).agents == ((1, 2), (2, 1))
    beside = frame.copy()
    beside[:8, :8] = frame[8:16, :8]
    assert canvas.read(beside, (4, 4), (1, 0)).outside == 1
    # Blur around the map isn't an agent. An agent outside of the map is found at its position.
    blurred = frame.copy()
    blurred[:8, :8] += 0.15
    reading = canvas.read(blurred, (4, 4), (1, 0))
    assert (reading.agents, reading.outside) == (((1, 2),), 1)
    out = canvas.draw(desc, None, (1, 0))
    out[:8, :8] = canvas.draw(desc, (0, 0), (1, 0))[8:16, :8]
    out[16:24, 32:] = canvas.draw(desc, (0, 1), (1, 0))[8:16, 8:16]
    reading = canvas.read(out, (4, 4), (1, 0))
    assert (reading.agents, reading.outside) == (((-1, 0), (1, 4)), 0)
    # A cell that is as close to a start tile as to ice is unreadable.
    between = (canvas.draw(desc, (1, 2), (1, 0)) + frame) / 2
    between[8:16, :8] = (between[8:16, :8] + between[8:16, 8:16]) / 2
    assert canvas.read(between, (4, 4), (1, 0)).unreadable == 1
    nothing = canvas.read(np.full_like(frame, np.nan), (4, 4), (1, 0))
    assert (nothing.unreadable, nothing.outside) == (16, 9)
    # The environment doesn't draw the agent in a hole.
    fallen = canvas.draw(desc, (1, 1), (1, 0))
    np.testing.assert_array_equal(fallen, canvas.draw(desc, None, (1, 0)))
    assert canvas.read(fallen, (4, 4), (1, 0)).agents == ()


def test_paths_are_shortest_and_have_only_legal_moves():
    rng = np.random.default_rng(3)
    for _ in range(20):
        desc = make_map(rng, int(rng.integers(3, 7)), (0.5, 0.9), held_out=False)
        size, left = len(desc), distances_to_goal(desc)
        # Only shortest distances satisfy Bellman's equation.
        for cell in itertools.product(range(size), repeat=2):
            beside = [left.get((cell[0] + d, cell[1] + r), np.inf) for d, r in maps.MOVES]
            if left.get(cell):
                assert left[cell] == 1 + min(beside)
            elif desc[cell[0]][cell[1]] != "H" and cell not in left:
                assert min(beside) == np.inf
        start = maps.find(desc, "S")
        cells = maps.walk(desc, start, left[start] + 2)
        assert [left[cell] for cell in cells] == [*range(left[start])][::-1] + [0, 0]
        env = maps.make_env(desc)
        env.reset(seed=0)
        for before, after in itertools.pairwise([start, *cells[: left[start]]]):
            action = maps.MOVES.index((after[0] - before[0], after[1] - before[1]))
            assert divmod(int(env.step(action)[0]), size) == after
            # Of several moves that lead towards the goal, the teacher takes the smallest action.
            towards = [(before[0] + d, before[1] + r) for d, r in maps.MOVES]
            assert action == [left.get(cell) for cell in towards].index(left[after])


def test_training_data_contain_no_held_out_map():
    rng = np.random.default_rng(0)
    shares = [
        is_held_out(tuple(maps.import_frozen_lake().generate_random_map(4, 0.7, seed=i)))
        for i in range(300)
    ]
    assert 0.1 < np.mean(shares) < 0.3
    config = tiny_frozenlake()
    examples = make_frozenlake(config).records
    canvas = make_canvas(config)
    tests = {make_map(rng, size, (0.6, 0.9), held_out=True) for size in (3, 4) for _ in range(50)}
    for index in range(100):
        frame = (examples[index]["condition"]["frame"] + 1) / 2
        # The example doesn't store the position of the map: it is where the frame isn't grey.
        cells = frame.reshape(canvas.cells, 8, canvas.cells, 8, 3).std((1, 3, 4)) > 0
        rows, columns = np.argwhere(cells.any(1))[:, 0], np.argwhere(cells.any(0))[:, 0]
        desc = canvas.read(frame, (len(rows), len(columns)), (rows[0], columns[0])).desc
        assert desc not in tests and not is_held_out(desc)
        assert len(desc) in (3, 4)


def test_examples_show_the_frame_after_each_move():
    config = tiny_frozenlake()
    canvas, examples = make_canvas(config), make_frozenlake(config).records
    from_start = 0
    for index in range(60):
        example = examples[index]
        again = examples[index]
        np.testing.assert_array_equal(example["x"], again["x"])
        assert example["x"].dtype == np.float32 and abs(example["x"]).max() <= 1
        film = np.stack([example["condition"]["frame"], *example["frames"], example["x"]])
        assert film.shape == (4, 32, 32, 3)
        whole = [canvas.read((frame + 1) / 2, (4, 4), (0, 0)) for frame in film]
        if whole[0].unreadable:
            continue  # a 3×3 map, which doesn't fill the frame
        desc = whole[0].desc
        (cell,) = whole[0].agents
        from_start += cell == (0, 0)
        assert [r.agents for r in whole[1:]] == [(c,) for c in maps.walk(desc, cell, 3)]
    assert 5 < from_start < 60


def test_examples_for_one_latent_step_have_no_intermediate_frames():
    config = tiny_frozenlake()
    config.model.thinking.latent_steps = 1
    assert set(make_frozenlake(config).records[0]) == {"x", "condition"}


@pytest.mark.parametrize(
    "desc,reason",
    [
        (("SF", "FG"), None),
        (("SH", "HG"), "no path"),
        (("SF", "FF"), "one S and one G"),
        (("SF", "FGF"), "equal length"),
        (("SX", "FG"), "letters"),
        (("S" + "F" * 8,) + ("F" * 9,) * 7 + ("F" * 8 + "G",), "9×9; a frame shows at most 8×8"),
    ],
)
def test_unplayable_maps_are_refused_with_a_reason(desc, reason):
    found = check_map(desc, 8)
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(
    "changes,match",
    [
        ({"frozenlake.tile": 6}, "tile=6.*visible: 8, 16, 32, 64"),
        ({"frozenlake.tile": 4}, "tile=4.*visible: 8"),
        ({"frozenlake.tile": 16, "model.image_size": 40}, "image_size=40 isn't a multiple"),
        ({"frozenlake.unseen_sizes": (5,)}, "5×5 cells don't fit"),
        ({"frozenlake.sizes": (3, 4), "frozenlake.unseen_sizes": (4,)}, r"both name \[4\]"),
        ({"frozenlake.sizes": ()}, "sizes is empty"),
        ({"frozenlake.frozen": (0.9, 0.6)}, "two probabilities"),
        ({"frozenlake.frozen": (0.1, 0.6)}, "probabilities from 0.5"),
        ({"frozenlake.read_sigma": 1.0}, "read_sigma=1.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, match):
    config = tiny_frozenlake()
    for name, value in changes.items():
        section, field = name.split(".")
        config[section][field] = value
    with pytest.raises(UserError, match=match):
        make_frozenlake(config)


def test_search_for_a_held_out_map_gives_up():
    # Without holes there is only one map of each size.
    with pytest.raises(UserError, match="none of 2000 generated 4×4 maps is a test map"):
        make_map(np.random.default_rng(0), 4, (1.0, 1.0), held_out=True)


@pytest.mark.parametrize("module", ["gymnasium.envs.toy_text", "pygame"])
def test_without_gymnasium_or_pygame_the_error_names_the_extra(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="pip install -e '.\\[frozenlake\\]'"):
        maps.import_frozen_lake()


def test_default_settings_are_valid():
    assert FrozenLakeConfig().sizes
