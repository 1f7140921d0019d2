"""The analysis of a workdir: collected in bounded memory, documents, bad input."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from analysed import BATCH, LATENT_STEPS, NUM, SEED
from conftest import run_entry, tiny_config
from etils import epath
from PIL import Image

import tp_jax
from tp_jax import analysis
from tp_jax.analysis import blocks, collect
from tp_jax.analysis.blocks import LeftOut
from tp_jax.analysis.interventions import with_random_gate
from tp_jax.analysis.samples import choose_samples, group_by_word
from tp_jax.train.loop import train


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


def test_memory_does_not_grow_with_the_number_of_samples(analysed, monkeypatch):
    loaded, generator = analysed.loaded, analysed.generator
    for name, value in dict(
        MAX_UNITS=8, MIN_UNITS=8, MAX_TOKENS=8, MIN_TOKENS=8, INPUT_TOKENS=4, SHOWN=8
    ).items():
        monkeypatch.setattr(collect, name, value)
    sizes, tokens = [], []
    for num in (16, 160):
        samples = choose_samples(loaded, num, SEED)
        found = collect.collect(generator, loaded.params, samples, SEED)
        sizes.append({block: totals.nbytes for block, totals in found.blocks.items()})
        tokens.append(found.blocks[1].tokens.kept["tokens"])
        assert found.blocks[1].num == num and len(found.images) == 8
    assert sizes[0] == sizes[1]
    assert all((found != 0).any((1, 2, 3)).all() for found in tokens)


def test_a_reservoir_spreads_over_all_items_whatever_the_batches():
    for batches in ([20], [3, 9, 8], [1] * 20):
        reservoir, start = collect.Reservoir(wanted=5, total=20), 0
        for num in batches:
            reservoir.add(num, lambda chosen, start=start: {"item": chosen + start})
            start += num
        assert reservoir.kept["item"].tolist() == [3, 7, 11, 15, 19]


def test_a_model_with_a_random_gate_follows_nothing(analysed):
    loaded = with_random_gate(analysed.loaded)
    generator = dataclasses.replace(analysed.generator, model=loaded.model)
    samples = choose_samples(loaded, 160, SEED)
    collected = collect.collect(generator, loaded.params, samples, SEED)
    thinking = loaded.built.model.thinking
    described = blocks.describe_blocks(
        collected, samples, loaded.params, thinking, (2, 2), LeftOut()
    )
    for block in described.values():
        assert len(block["information"]) == 5
        for name, found in block["information"].items():
            assert found["corrected"] < 0.003 and found["bits"] < 1.5 * found["permuted_high"], name


@pytest.fixture(scope="module")
def workdir(trained, tmp_path_factory):
    """A copy of the trained workdir, with a class name that isn't safe in HTML."""
    folder = tmp_path_factory.mktemp("analysed") / "run"
    shutil.copytree(trained, folder)
    run = json.loads((folder / "run.json").read_text())
    run["classes"] = ["<script>", *map(str, range(1, 10))]
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_the_command_writes_a_document_pictures_and_a_report(workdir):
    code, _, error = run_entry(
        "analyze", f"--workdir={workdir}", "--num=60", "--batch_size=8", "--latent_steps=3"
    )
    assert code == 0, error
    out = workdir / "analysis"
    document = json.loads((out / "analysis.json").read_text(), parse_constant=pytest.fail)
    run = document["run"]
    assert (run["latent_steps"], run["trained_latent_steps"], run["num"]) == (3, 2, 60)
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
    assert parts == ["scores and worst samples"]


def test_json_alone(workdir, tmp_path):
    out = tmp_path / "out"
    code, printed, error = run_entry(
        "analyze", f"--workdir={workdir}", f"--out={out}", "--num=1", "--json", "--latent_steps=1"
    )
    assert code == 0, error
    assert printed.strip() == str(out / "analysis.json")
    assert [path.name for path in out.iterdir()] == ["analysis.json"]
    document = json.loads(printed and (out / "analysis.json").read_text())
    block = document["blocks"]["1"]
    for name in ("kept", "moves", "ratios", "together", "trajectories", "information"):
        assert block[name] is None
    left_out = {entry["part"]: entry["why"] for entry in document["left_out"]}
    assert left_out["kept"] == "there is one latent step"
    assert left_out["information"] == "it needs 10 samples: raise --num"
    assert left_out["route of another sample"] == "it needs two samples"


def test_a_model_with_one_expert_that_no_gate_chooses(tmp_path):
    config = tiny_config(steps=1)
    config.model.thinking.update(layers=(1,), experts=1, share_across_steps=False)
    train(config, epath.Path(tmp_path / "run"))
    arguments = [f"--workdir={tmp_path / 'run'}", "--num=12", "--batch_size=4", "--json"]
    code, _, error = run_entry("analyze", *arguments)
    assert code == 0, error
    document = json.loads((tmp_path / "run" / "analysis" / "analysis.json").read_text())
    block = document["blocks"]["1"]
    assert block["information"] is None and block["similarity"] is None
    assert np.all(np.array(block["entropy"]) == 0) and block["dead_experts"] == [[], []]
    why = {entry["part"]: entry["why"] for entry in document["left_out"]}
    assert why["information"] == why["experts off, other routes"] == "there is one expert"
    names = [entry["name"] for entry in document["interventions"]]
    assert names == ["unchanged", "thinking off", "T = 1"]
    code, _, error = run_entry("analyze", *arguments, "--latent_steps=3")
    assert code == 2 and "experts for 2 latent steps only: use 2 or fewer" in error
    assert error.count("\n") == 1


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
