"""The analysis of a workdir: collected in bounded memory, documents, bad input."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from analysed import BATCH, LATENT_STEPS, NUM, SEED, describe
from conftest import run_entry
from PIL import Image

import tp_jax
from tp_jax import analysis
from tp_jax.analysis import collect
from tp_jax.analysis.samples import Groups, Samples, group_by_word
from tp_jax.thinking import ThinkingConfig


@pytest.fixture(scope="module")
def routing(analysed):
    loaded = analysed.loaded
    model = tp_jax.Model(loaded)
    return model.trace(NUM, seed=SEED, latent_steps=LATENT_STEPS, batch_size=BATCH, tokens=True)


def test_the_stream_agrees_with_the_functions_of_a_trace(analysed, routing):
    loaded, collected = analysed.loaded, analysed.collected
    experts = loaded.built.model.thinking.experts
    temperature = loaded.built.model.thinking.temperature
    for block, totals in collected.blocks.items():
        chosen, tokens = routing.experts[block], routing.tokens[block]
        assert tokens.shape == (3, LATENT_STEPS, NUM, 4, 16)
        shares = analysis.shares
        np.testing.assert_allclose(shares(totals.by_step), analysis.use(chosen, experts))
        np.testing.assert_allclose(shares(totals.by_place), analysis.use_by_place(chosen, experts))
        classes = np.eye(10)[np.arange(NUM) % 10]
        by_group = analysis.use_by_group(chosen, experts, classes)
        np.testing.assert_allclose(shares(totals.by_group), by_group)
        np.testing.assert_allclose(totals.mean("kept"), analysis.kept(chosen))
        p = analysis.without_temperature(routing.probabilities[block], temperature)
        entropy = analysis.entropy(p).mean((2, 3))
        np.testing.assert_allclose(totals.mean("entropy"), entropy, rtol=1e-4, atol=1e-5)
        for name, wanted in {
            "moves": analysis.moves(tokens).mean((2, 3)),
            "ratios": analysis.ratios(tokens).mean((2, 3)),
            "together": analysis.together(tokens).mean(1)[:, None],
        }.items():
            np.testing.assert_allclose(totals.mean(name), wanted, rtol=1e-3, atol=1e-4)
        assert shares(totals.by_step).min() > 0.05 or len(np.unique(chosen)) > 1
        np.testing.assert_array_equal(totals.shown, chosen)
    np.testing.assert_array_equal(collected.images, routing.images)
    np.testing.assert_allclose(collected.timesteps, routing.timesteps)


def test_kept_samples_and_tokens_are_those_of_the_trace(analysed, routing):
    collected = analysed.collected
    for block, totals in collected.blocks.items():
        units, chosen = totals.units.kept, routing.experts[block]
        np.testing.assert_array_equal(units["step"].sum(0), totals.by_step.sum(1))
        np.testing.assert_array_equal(units["place"].sum(0), totals.by_place.sum(0))
        np.testing.assert_array_equal(units["latent_step"].sum(0), totals.by_step.sum(0))
        assert units["group"].sum(0).tolist() == [3, 3, 3, 3] + [2] * 6
        kept = totals.tokens.kept
        # All tokens are kept here, in another order.
        paths = routing.tokens[block].transpose(2, 3, 0, 1, 4).reshape(-1, 3, LATENT_STEPS, 16)
        experts = chosen.transpose(2, 3, 0, 1).reshape(-1, 3, LATENT_STEPS)
        assert kept["tokens"].shape == paths.shape
        for token, expert in zip(kept["tokens"], kept["expert"], strict=True):
            (at,) = np.flatnonzero(np.abs(paths - token).max((1, 2, 3)) < 1e-5)
            np.testing.assert_array_equal(experts[at], expert)


def test_a_reservoir_spreads_over_all_items_whatever_the_batches():
    for batches in ([20], [3, 9, 8], [1] * 20):
        reservoir, start = collect.Reservoir(wanted=5, total=20), 0
        for num in batches:
            reservoir.add(num, lambda chosen, start=start: {"item": chosen + start})
            start += num
        assert reservoir.kept["item"].tolist() == [3, 7, 11, 15, 19]


S, T, N, D = 3, 3, 4, 6
BOUNDS = collect.Bounds(steps=(0, 1, 2), per_sample=N, tokens=400, units=50)
THINKING = ThinkingConfig(layers=(1,), experts=2, rank=2, latent_steps=T)
# What is left out if tokens don't halt.
HALTING = {"latent_steps", "latent_steps_by_place"}


def samples_of(num, classes=5):
    names = tuple(map(str, range(classes)))
    groups = Groups("class", names, np.eye(classes, dtype=bool))
    return Samples(num, {}, names, groups, None, {})


def drawn(num, latent_steps=T, experts=2):
    """Random experts and tokens of `num` samples, and random parameters of the experts."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(S, latent_steps, num, N, D)).astype(np.float32)
    shapes = {"lora_a": (experts, D, 3, 2), "lora_b": (experts, 3, 2, D)}
    layer = {"experts": {name: rng.normal(size=shape) for name, shape in shapes.items()}}
    return rng.integers(experts, size=tokens.shape[:-1]), tokens, layer


def test_memory_does_not_grow_with_the_number_of_samples():
    sizes = []
    for num in (200, 2000):
        experts, tokens, layer = drawn(num)
        bounds = dataclasses.replace(BOUNDS, tokens=80, units=20)
        _, _, totals = describe(experts, tokens, samples_of(num), THINKING, layer, bounds)
        sizes.append(totals.nbytes)
        assert totals.num == num and (totals.tokens.kept["tokens"] != 0).any((1, 2, 3)).all()
    assert sizes[0] == sizes[1]


def test_a_random_gate_follows_nothing():
    block, left_out, _ = describe(*drawn(400)[:2], samples_of(400), THINKING, drawn(1)[2], BOUNDS)
    assert len(block["information"]) == 5 and set(left_out) == HALTING
    for name, found in block["information"].items():
        assert found["corrected"] < 0.003 and found["bits"] < 1.5 * found["permuted_high"], name


def test_a_gate_that_follows_one_variable_is_seen_to_do_so():
    experts, tokens, layer = drawn(400)
    choices = {
        "timestep": np.arange(S)[:, None, None, None] % 2,
        "latent_step": np.arange(T)[:, None, None] % 2,
        "place": np.arange(N) % 2,
        "group": (np.arange(400) % 5 < 2)[:, None],
    }
    for name, chosen in choices.items():
        chosen = np.broadcast_to(chosen, experts.shape).astype(int)
        block, _, _ = describe(chosen, tokens, samples_of(400), THINKING, layer, BOUNDS)
        for variable, found in block["information"].items():
            share = chosen.mean()
            bits = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
            assert found["bits"] == pytest.approx(bits if variable == name else 0, abs=0.02)
            assert (found["bits"] > 5 * found["permuted_high"]) == (variable == name), (name, found)
    # A feature that is positive for half of the tokens, at another scale at each step.
    content = np.random.default_rng(1).integers(2, size=(400, N))
    tokens = tokens + (20 * content - 10)[:, :, None]
    chosen = np.broadcast_to(content, experts.shape)
    tokens = tokens * np.arange(1, 1 + S * T).reshape(S, T, 1, 1, 1)
    block, _, _ = describe(chosen, tokens, samples_of(400), THINKING, layer, BOUNDS)
    assert block["information"]["content"]["bits"] > 0.9
    assert block["information"]["timestep"]["bits"] < 0.01


def test_what_one_expert_or_one_latent_step_leaves_out():
    experts, tokens, layer = drawn(20, latent_steps=1, experts=1)
    thinking = dataclasses.replace(THINKING, experts=1, latent_steps=1)
    block, left_out, _ = describe(experts, tokens, samples_of(20), thinking, layer, BOUNDS)
    missing = {"kept", "moves", "ratios", "together", "trajectories", "information", "similarity"}
    missing |= HALTING
    assert {name for name in block if block[name] is None} == missing == set(left_out)
    assert left_out["information"] == left_out["similarity"] == "there is one expert"
    assert left_out["kept"] == "there is one latent step"
    assert block["effective_experts"] == [1] and block["dead_experts"] == [[]]


def test_what_untrained_experts_and_few_samples_leave_out():
    experts, tokens, layer = drawn(3)
    tokens[:] = tokens[:, :1]  # no token moves
    layer["experts"]["lora_b"] *= 0
    block, left_out, _ = describe(experts, tokens, samples_of(3), THINKING, layer, BOUNDS)
    assert set(left_out) == {"information", "ratios", "together", "similarity"} | HALTING
    assert left_out["information"] == "it needs 10 samples: raise --num"
    assert left_out["similarity"] == "the experts are still zero"
    assert np.all(np.array(block["moves"]) == 0) and block["use_by_group"][4][0] == [None, None]
    # Enough samples for some information, but not for that of 5 classes.
    _, left_out, _ = describe(*drawn(20)[:2], samples_of(20), THINKING, drawn(1)[2], BOUNDS)
    found = {"information with the group", "information with the content"}
    assert set(left_out) == found | HALTING


def test_latent_steps_of_tokens_that_halt():
    """Token n of 4 halts after min(n + 1, 2) latent steps, and at the last sampler step after 1."""
    experts, tokens, layer = drawn(20)
    steps = np.broadcast_to(np.minimum(np.arange(N) + 1, 2), (S, 20, N)).copy()
    steps[-1] = 1
    halted = np.arange(T)[:, None, None] >= steps[:, None]
    experts = np.where(halted, 2, experts)
    np.testing.assert_array_equal(analysis.latent_steps_used(experts, 2), steps)
    thinking = dataclasses.replace(THINKING, halting="threshold")
    block, left_out, totals = describe(experts, tokens, samples_of(20), thinking, layer, BOUNDS)
    assert not set(left_out) & HALTING
    np.testing.assert_allclose(block["latent_steps"], [1.75, 1.75, 1])
    # Two of three sampler steps take 1, 2, 2, 2 latent steps, and one takes 1 everywhere.
    np.testing.assert_allclose(block["latent_steps_by_place"], [[1, 5 / 3], [5 / 3, 5 / 3]], 1e-5)
    # The statistics are those of the tokens that took a latent step; none takes the third.
    live = experts[:2, 1, :, 1:]
    np.testing.assert_allclose(
        np.array(block["use"], float)[:2, 1, 1], (live == 1).mean((1, 2)), 1e-5
    )
    kept = (experts[:2, 0, :, 1:] == live).mean((1, 2))
    np.testing.assert_allclose(totals.mean("kept")[:2, 0], kept)
    np.testing.assert_allclose(analysis.kept(experts, 2)[:2, 0], kept)
    assert np.isnan(totals.mean("kept")[:, 1]).all() and np.isnan(totals.mean("kept")[2]).all()
    assert block["use"][0][2] == [None, None] and block["use"][2][1] == [None, None]
    assert np.array(block["use_by_place"]).shape == (2, 2, 2, 2)
    assert len(block["effective_experts"]) == 2
    choices = sum(totals.units.kept["step"].sum((1, 2)))
    assert choices == (~halted).sum()


def test_experts_of_each_latent_step_are_compared_at_their_step():
    experts, tokens, layer = drawn(20)
    own = dataclasses.replace(THINKING, share_across_steps=False)
    steps = {name: np.stack([leaf, 2 * leaf, -leaf]) for name, leaf in layer["experts"].items()}
    steps["lora_b"][1:, 1] = steps["lora_b"][1:, 0]
    steps["lora_a"][1:, 1] = steps["lora_a"][1:, 0]
    block, _, _ = describe(experts, tokens, samples_of(20), own, {"step_experts": steps}, BOUNDS)
    first, _, _ = describe(experts[:, :1], tokens[:, :1], samples_of(20), THINKING, layer, BOUNDS)
    # Equal experts at the second and third step, those of `layer` at the first.
    wanted = (2 + first["similarity"]["q"][0][1]) / 3
    assert block["similarity"]["q"][0][1] == pytest.approx(wanted, abs=1e-5)


@pytest.fixture(scope="module")
def workdir(trained, tmp_path_factory):
    """A copy of the trained workdir, with a class name that isn't safe in HTML."""
    folder = tmp_path_factory.mktemp("analysed") / "run"
    shutil.copytree(trained, folder)
    run = json.loads((folder / "run.json").read_text())
    run["classes"] = ["<script>", *map(str, range(1, 10))]
    (folder / "run.json").write_text(json.dumps(run))
    return folder


@pytest.mark.slow
def test_the_command_writes_a_document_pictures_and_a_report(workdir):
    code, _, error = run_entry(
        "analyze", f"--workdir={workdir}", "--num=60", "--batch_size=8", "--latent_steps=3"
    )
    assert code == 0, error
    out = workdir / "analysis"
    document = json.loads((out / "analysis.json").read_text(), parse_constant=pytest.fail)
    run = document["run"]
    assert (run["latent_steps"], run["trained_latent_steps"], run["num"]) == (3, "2", 60)
    assert run["groups"][0] == "<script>" and run["group_kind"] == "class"
    assert run["grid"] == [2, 2] and run["experts"] == 2 and len(document["timesteps"]) == 3
    shapes = {
        "entropy": (3, 3), "kept": (3, 2), "use": (3, 3, 2), "use_by_group": (10, 3, 2),
        "use_by_place": (3, 2, 2, 2), "effective_experts": (3,), "moves": (3, 2), "ratios": (3, 1),
        "together": (3,),
    }  # fmt: skip
    assert set(document["blocks"]) == {"1", "2"}
    for block in document["blocks"].values():
        assert {name: np.shape(block[name]) for name in shapes} == shapes
        variables = {"timestep", "latent_step", "place", "group", "content"}
        assert set(block["information"]) == variables
        for values in block["information"].values():
            assert values["permuted_mean"] <= values["permuted_high"]
            assert values["corrected"] <= values["bits"] + 1e-9
        assert {
            part: np.shape(table) for part, table in block["similarity"].items()
        } == dict.fromkeys("qkv", (2, 2))
        assert len(block["dead_experts"]) == 3 and len(block["trajectories"]) == 3
        points = block["trajectories"][0]
        assert np.shape(points["points"])[1:] == (3, 2) and len(points["explained"]) == 2
        assert np.shape(points["expert"]) == np.shape(points["points"])[:2]
    names = [entry["name"] for entry in document["interventions"]]
    assert names[0] == "unchanged" and "T = 2" in names and "T = 3" not in names
    images = [entry["image"] for entry in document["interventions"]]
    images += [document["samples"]["image"], *document["samples"]["maps"].values()]
    for name in images:
        with Image.open(out / name) as image:
            assert min(image.size) > 60
    assert (out / "report.html").stat().st_size
    parts = [entry["part"] for entry in document["left_out"]]
    assert parts == ["latent_steps", "latent_steps_by_place", "scores and worst samples"]


@pytest.mark.slow
def test_json_alone(workdir, tmp_path):
    out = tmp_path / "out"
    code, printed, error = run_entry(
        "analyze", f"--workdir={workdir}", f"--out={out}", "--num=8", "--json", "--latent_steps=3"
    )
    assert code == 0, error
    assert printed.strip() == str(out / "analysis.json")
    assert [path.name for path in out.iterdir()] == ["analysis.json"]
    document = json.loads((out / "analysis.json").read_text())
    assert document["samples"] == {"image": None, "maps": {}}
    assert "pictures and report" in [entry["part"] for entry in document["left_out"]]


def test_what_can_not_be_analysed_is_said_in_one_line(
    refused, trained, trained_shapes, tmp_path, monkeypatch
):
    place, out = tmp_path / "place", f"--out={tmp_path / 'place' / 'out'}"
    refused("analyze", f"--workdir={place}", out, match="has no config.json")
    refused("analyze", f"--workdir={trained_shapes}", out, match="without thinking layers")
    (place / "file").write_text("")
    refused("analyze", f"--workdir={trained}", f"--out={place / 'file'}", match="is a file")
    refused("analyze", f"--workdir={trained}", out, "--labels=10", match="label 10 is out of range")
    refused("analyze", f"--workdir={trained}", out, "--prompts=a cross", match="not on prompts")
    refused("analyze", f"--workdir={trained}", out, "--num=0", match="--num")
    (place / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    locked = f"--out={place / 'locked'}"
    refused("analyze", f"--workdir={trained}", locked, match="locked can't be written to; name")


def test_prompts_are_grouped_by_their_words():
    groups = group_by_word(["A red ring", "two red, red rings", "<script>"])
    assert groups.names[0] == "red" and groups.kind == "word"
    assert groups.members[:, 0].tolist() == [True, True, False]
    assert group_by_word(["🪑", ""]) is None
