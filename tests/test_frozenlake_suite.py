"""The suite frozenlake: how plays are judged, and evaluating a trained model."""

import json
import pathlib
import runpy

import jax
import numpy as np
import pytest
from conftest import run_entry
from etils import epath
from PIL import Image
from small_configs import tiny_frozenlake

from tp_jax.config import build
from tp_jax.evals.frozenlake import plays as plays_lib
from tp_jax.evals.frozenlake.plays import Place, Play, classify, walk_as_oracle, walk_randomly
from tp_jax.models import build_model
from tp_jax.models.parameters import abstract_params
from tp_jax.parallel.mesh import create_mesh
from tp_jax.performance.programs import trace
from tp_jax.train.loop import train
from tp_jax.worlds.frozenlake.frames import Canvas, Reading
from tp_jax.worlds.frozenlake.maps import is_held_out

CONFIGS = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs/frozenlake.py"))
LAKE = ("SFFF", "FHFH", "FFFH", "HFFG")


def test_variants_of_the_config_have_equal_numbers_of_parameters():
    def count(argument):
        model = build_model(build(CONFIGS["get_config"](argument)).model)
        return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)))

    for size in ("", "large"):
        counts = [count(",".join(filter(None, (size, name)))) for name in ("", "random", "single")]
        assert max(counts) / min(counts) < 1.001


@pytest.mark.slow
def test_model_with_random_experts_and_one_latent_step_is_evaluated(tmp_path):
    config = tiny_frozenlake(steps=2)
    config.model.thinking.update(gate="random", latent_steps=1)
    train(config, epath.Path(tmp_path / "run"))
    code, _, _ = run_entry(
        "evaluate", "--suite=frozenlake", f"--workdir={tmp_path / 'run'}", "--num=1",
        f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    assert code == 0


def test_predicted_train_step_includes_the_frame_loss():
    config = tiny_frozenlake()
    program = trace(config, "train", create_mesh(config.mesh, jax.devices()[:1]))
    (_, metrics) = program.traced.out_info
    assert "frames" in metrics


def step(*agents, desc=LAKE, unreadable=0, outside=0):
    return Reading(desc, agents, unreadable, outside)


@pytest.mark.parametrize(
    "readings,outcome,cell",
    [
        ([step((1, 0)), step((1, 1))], "hole", (1, 1)),
        ([step((1, 0)), step((1, 0)), step((2, 0))], None, (2, 0)),
        ([step((1, 1))], "diagonal", (0, 0)),
        ([step((2, 0))], "jump", (0, 0)),
        ([step((0, 3))], "edge", (0, 0)),
        ([step((3, 0))], "edge", (0, 0)),
        ([step((-1, 0))], "edge", (0, 0)),
        ([step((0, 1)), step((0, 2)), step((0, 3)), step((0, 4))], "edge", (0, 3)),
        ([step((-1, 1))], "jump", (0, 0)),
        ([step(outside=1)], "unreadable", (0, 0)),
        ([step((0, 1)), step()], "no_agent", (0, 1)),
        ([step((0, 1), (1, 0))], "two_agents", (0, 0)),
        ([step((0, 1), unreadable=1)], "unreadable", (0, 0)),
        ([step((0, 1), outside=1)], "unreadable", (0, 0)),
        ([step((0, 0))] * 12, "lost", (0, 0)),
        ([step(c) for c in [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (3, 3)]], "goal", (3, 3)),
    ],
)
def test_environment_decides_the_outcome_of_predicted_frames(readings, outcome, cell):
    play = Play(Place(LAKE, (0, 0)))
    for reading in readings:
        assert play.outcome is None
        play.advance([reading])
    assert (play.outcome, play.cell) == (outcome, cell)
    # Every predicted frame is compared with the true one.
    assert play.compared == len(readings)


def test_frames_are_equal_if_map_and_agent_are_correct():
    play = Play(Place(LAKE, (0, 0)))
    thawed = ("SFFF", "FFFH", "FFFH", "HFFG")
    play.advance([step((1, 0)), step((2, 0), desc=thawed), step((2, 1)), step((2, 2))])
    # The true frames follow the shortest path, which goes down at (2, 1).
    assert (play.equal, play.compared, play.outcome) == (2, 4, None)
    # The next true frames start at the agent's current cell.
    play.advance([step((3, 2))])
    assert (play.equal, play.compared) == (3, 5)


def test_moves_are_classified():
    assert classify((1, 1), (1, 0), (4, 4)) == ("legal", 0)
    assert classify((1, 1), (2, 1), (4, 4)) == ("legal", 1)
    assert classify((1, 1), (1, 2), (4, 4)) == ("legal", 2)
    assert classify((1, 1), (0, 1), (4, 4)) == ("legal", 3)
    assert classify((1, 1), (1, 1), (4, 4)) == ("legal", None)
    assert classify((1, 1), (3, 2), (4, 4)) == ("jump", None)
    # In a map with two columns, the opposite edge is the neighbouring cell.
    assert classify((0, 0), (0, 1), (2, 2)) == ("legal", 2)


def test_oracle_always_reaches_the_goal_and_a_random_walker_rarely():
    canvas, rng = Canvas(6, 8), np.random.default_rng(0)
    places = plays_lib.held_out_places((3, 4, 6), (0.6, 0.9), canvas, 20, seed=1)
    assert len({place.desc for place in places}) == len(places)
    assert all(is_held_out(place.desc) for place in places)
    assert {place.size for place in places} == {"3×3", "4×4", "6×6"}
    oracle = plays_lib.score([walk_as_oracle(place, canvas) for place in places], (6,))
    assert oracle["all"]["goal"] == oracle["all"]["frames_equal"] == 1
    assert oracle["all"]["plays"] == len(places)
    assert oracle["unseen_sizes"] == oracle["6×6"]
    random = plays_lib.score([walk_randomly(place, rng) for place in places], (6,))
    assert random["all"]["hole"] > 0.3 and random["all"]["goal"] < 0.5
    assert random["all"]["illegal"] == random["all"]["unreadable"] == 0
    total = sum(random["all"][name] for name in plays_lib.OUTCOMES)
    assert total == pytest.approx(1)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A workdir trained for six steps on FrozenLake."""
    workdir = epath.Path(tmp_path_factory.mktemp("lake")) / "run"
    config = tiny_frozenlake()
    config.evaluation.update(suite="frozenlake", batch_size=4)
    config.evaluation.frozenlake.num = 3
    train(config, workdir)
    return workdir


def test_suite_writes_scores_and_pictures(walked, tmp_path):
    assert (walked / "samples/00000006.png").exists()
    out = tmp_path / "out"
    arguments = ["--suite=frozenlake", f"--workdir={walked}", "--num=3", "--batch_size=4"]
    code, stdout, _ = run_entry("evaluate", *arguments, f"--out={out}")
    assert code == 0
    scores = json.loads((out / "scores.json").read_text())
    assert scores["model"]["all"]["plays"] == 6
    # The scores in training are of the same parameters.
    in_training = json.loads((walked / "evaluations" / "00000006.json").read_text())
    assert in_training == {
        f"{group}/{name}": value
        for group, values in scores["model"].items()
        for name, value in values.items()
    }
    assert (walked / "evaluations" / "00000006" / "failures.png").exists()
    assert set(scores["model"]) == {"all", "seen_sizes", "3×3", "4×4"}
    assert scores["oracle"]["all"]["goal"] == 1
    assert "frames_equal" in stdout and "random_walker" in stdout
    pictures = [path for path in out.iterdir() if path.suffix in (".png", ".gif")]
    assert len(pictures) >= 2
    for path in pictures:
        with Image.open(path) as image:
            assert min(image.size) > 32
    # The batch size changes no score; the number of latent steps may.
    for other, flags in (("alone", ["--batch_size=8"]), ("longer", ["--latent_steps=5"])):
        changed = [*arguments, *flags, f"--out={tmp_path / other}"]
        code, _, stderr = run_entry("evaluate", *changed)
        assert code == 0
        said = "latent_steps=5: the model was trained with 3" in stderr
        assert said == (other == "longer")
    again = json.loads((tmp_path / "alone/scores.json").read_text())
    assert again["model"] == scores["model"]
    code, _, _ = run_entry("evaluate", *arguments, "--look", f"--out={tmp_path / 'look'}")
    assert code == 0


def test_maps_of_a_file_are_played_or_refused_with_a_reason(walked, tmp_path):
    maps = tmp_path / "maps.txt"
    maps.write_text("\nSF\nFG\n  \n" + "\n".join(LAKE) + "\n\nSH\nHG\n\n\nSFFFF\nFFFFG\n\nS F G\n")
    code, _, stderr = run_entry(
        "evaluate", "--suite=frozenlake", f"--workdir={walked}", f"--maps={maps}",
        f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    assert code == 0
    assert "skipped map 3: has no path from S to G" in stderr
    assert "skipped map 4: is 2×5; a frame shows at most 4×4" in stderr
    assert "skipped map 5: rows must have" in stderr
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["refused_maps"] == 3 and scores["model"]["all"]["plays"] == 2


def test_wrong_workdirs_and_flags_are_refused(walked, trained, tmp_path, refused):
    place, empty = tmp_path / "place", tmp_path / "none.txt"
    empty.write_text("SH\nHG\n")
    suite = ["evaluate", "--suite=frozenlake", f"--out={place / 'out'}"]
    refused(*suite, f"--workdir={trained}", match="trained on digits", watch=[trained])
    refused(*suite, f"--workdir={walked}", "--num=0", match="num=0", watch=[walked])
    refused(*suite, f"--workdir={walked}", "--maps=no.txt", match="no such file")
    for flag in ("--make", "--nothinking", "--height=64"):
        refused(*suite, f"--workdir={walked}", flag, match="isn't a flag of --suite=frozenlake")
    refused("evaluate", "--suite=shapes", "--look", match="--look isn't a flag of --suite=shapes")
    (place / "file").touch()
    at_file = ["evaluate", "--suite=frozenlake", f"--workdir={walked}", f"--out={place / 'file'}"]
    refused(*at_file, match="can't be created")
    lake = tmp_path / "lake.txt"
    lake.write_text("SF\nFG\n")
    refused(*suite, f"--workdir={walked}", f"--maps={lake}", "--num=0", match="num=0")
    sweep = ["--reference=r.npz", "--inception=i", f"--out={place / 'sweep'}"]
    refused(
        "evaluate", "--sweep", f"--workdir={walked}", "--guidance_scales=1", *sweep,
        match="predicts what follows a given frame",
    )  # fmt: skip
    sample = ["sample", f"--workdir={walked}", f"--out={place / 'x'}"]
    refused(*sample, match="--suite=frozenlake")


def test_scores_of_seeds_are_collected_with_both_baselines(tmp_path):
    def part(value):
        return {"all": {"plays": 4, "goal": value, "hole": 1 - value}}

    for variant, seed, value in (
        ("a", "0", 0.2),
        ("a", "1", 0.4),
        ("b", "0", 0.5),
        ("b", "1", 0.7),
    ):
        path = tmp_path / variant / seed / "scores.json"
        path.parent.mkdir(parents=True)
        content = {"model": part(value), "random_walker": part(0.1), "oracle": part(1.0)}
        path.write_text(json.dumps(content))
    out = tmp_path / "frozenlake.json"
    code, stdout, _ = run_entry(
        "evaluate", "--suite=frozenlake", f"--collect={tmp_path}", f"--out={out}"
    )
    assert code == 0
    assert "| all goal | 30.0 ± 14.1 |" in stdout and "60.0 ± 14.1 |" in stdout
    assert "| all plays (number) | 4 | 4 | 4 | 4 |" in stdout
    variants = json.loads(out.read_text())["variants"]
    assert list(variants) == ["a", "b", "random walker", "oracle"]
    assert variants["oracle"]["mean"] == {"all plays": 4, "all goal": 1.0, "all hole": 0.0}
    # Scores of other maps are refused.
    other = {"model": {"5×5": part(0)["all"]}, "random_walker": part(0), "oracle": part(0)}
    (tmp_path / "b/1/scores.json").write_text(json.dumps(other))
    code, _, stderr = run_entry(
        "evaluate", "--suite=frozenlake", f"--collect={tmp_path}", f"--out={out}"
    )
    assert code == 2 and "b/1/scores.json has different scores than" in stderr
