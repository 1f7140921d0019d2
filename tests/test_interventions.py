"""Interventions on how a model thinks, and the suites that judge their images."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from analysed import BATCH, LATENT_STEPS, NUM, SEED
from conftest import run_entry
from etils import epath
from small_configs import tiny_frozenlake

import tp_jax
from tp_jax.analysis import interventions
from tp_jax.analysis.blocks import LeftOut
from tp_jax.evals.shapes.scores import make_prompts
from tp_jax.evals.shapes.task import ShapesTask
from tp_jax.pictures.grids import to_uint8
from tp_jax.thinking.layer import ThinkingOptions
from tp_jax.train.loop import train
from tp_jax.worlds.shapes.render import render
from tp_jax.worlds.shapes.scenes import SKILLS, all_requests, make_scene


def conditions(num):
    return {"label": np.arange(num, dtype=np.int32)}


def test_given_routes_take_the_place_of_the_gate(analysed):
    loaded = analysed.loaded
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    timestep = np.full(4, 500, np.float32)

    @jax.jit
    def apply(routes):
        options = ThinkingOptions(latent_steps=LATENT_STEPS, trace=True, routes=routes)
        arguments = (x, timestep, conditions(4), options)
        return loaded.model.apply({"params": loaded.params}, *arguments)

    output, stats = apply(None)
    own = {block: found.expert for block, found in stats.items()}
    np.testing.assert_array_equal(apply(own)[0], output)
    other = {block: 1 - expert for block, expert in own.items()}
    changed, stats = apply(other)
    assert np.abs(changed - output).max() > 1e-3
    for block, found in stats.items():
        np.testing.assert_array_equal(found.expert, other[block])
    # Blocks without a route keep their gate.
    _, stats = apply({1: other[1]})
    np.testing.assert_array_equal(stats[1].expert, other[1])
    assert (np.asarray(stats[2].probabilities) != 0.5).any()


@pytest.mark.slow
def test_samples_exchange_their_routes_in_pairs(analysed):
    loaded = analysed.loaded
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    arguments, options = (
        (x, np.full(4, 500, np.float32), conditions(4)),
        ThinkingOptions(trace=True),
    )
    params = {"params": loaded.params}
    own = loaded.model.apply(params, *arguments, options)[1]
    wrapped = interventions.RoutedLikeAnother(loaded.model)
    for block, found in wrapped.apply(params, *arguments, options)[1].items():
        np.testing.assert_array_equal(found.expert, np.asarray(own[block].expert)[:, [1, 0, 3, 2]])
    assert wrapped.config is loaded.model.config


@pytest.mark.parametrize("share", [True, False])
def test_an_expert_is_switched_off_alone(analysed, share):
    loaded = analysed.loaded
    params = loaded.params
    if not share:
        layers = {
            name: {
                "step_experts": jax.tree.map(lambda leaf: np.stack([leaf] * 2), layer["experts"])
            }
            for name, layer in params["thinking"].items()
        }
        params = {"base": params["base"], "thinking": jax.device_put(layers, jax.devices()[0])}
    name = "experts" if share else "step_experts"
    off = interventions.without_expert(params, 1, share=share)
    for layer, found in off["thinking"].items():
        before = np.asarray(params["thinking"][layer][name]["lora_b"])
        after = np.asarray(found[name]["lora_b"])
        expert = (1,) if share else (slice(None), 1)
        assert (after[expert] == 0).all() and (before[expert] != 0).any()
        rest = (0,) if share else (slice(None), 0)
        np.testing.assert_array_equal(after[rest], before[rest])
    assert off["base"] is params["base"]


@pytest.fixture(scope="module")
def outcomes(analysed):
    loaded, generator = analysed.loaded, analysed.generator
    samples, collected = analysed.samples, analysed.collected
    left_out = LeftOut()
    use = np.array([0.5, 0.5])
    found, judgement = interventions.intervene(
        loaded, generator, samples, collected.images, use, SEED, left_out
    )
    assert judgement is None and left_out.as_json() == []
    return {outcome.name: outcome for outcome in found}


@pytest.mark.slow
def test_interventions_sample_the_changed_model_from_the_same_noise(analysed, outcomes):
    loaded, collected = analysed.loaded, analysed.collected
    names = ["thinking off", "expert 0 off", "expert 1 off", "random route"]
    names += ["route of another sample", "T = 1", "T = 2", "T = 4"]
    assert list(outcomes) == names
    model = tp_jax.Model(loaded)
    for name, options in {
        "thinking off": dict(thinking=False),
        "T = 1": dict(latent_steps=1),
        "T = 4": dict(latent_steps=4),
    }.items():
        wanted = model.sample(NUM, seed=SEED, batch_size=BATCH, **options)
        off_by = np.abs(outcomes[name].images.astype(int) - wanted)
        assert off_by.max() <= 1, name
    for outcome in outcomes.values():
        difference = np.abs(outcome.images.astype(float) - collected.images).mean()
        assert outcome.difference == pytest.approx(difference, rel=1e-4) and difference > 0.05


def test_interventions_that_make_no_sense_are_left_out(analysed):
    loaded, generator = analysed.loaded, analysed.generator

    def choose(num=8, latent_steps=1, **fields):
        thinking = dataclasses.replace(loaded.built.model.thinking, **fields)
        model = dataclasses.replace(loaded.built.model, thinking=thinking)
        built = dataclasses.replace(loaded.built, model=model)
        left_out = LeftOut()
        chosen = interventions.choose_interventions(
            dataclasses.replace(loaded, built=built),
            dataclasses.replace(generator, latent_steps=latent_steps),
            np.full(thinking.experts, 1 / thinking.experts),
            num,
            left_out,
        )
        return [each.name for each in chosen], {each["part"] for each in left_out.as_json()}

    names, left_out = choose(experts=1)
    assert names == ["thinking off", "T = 2"]
    assert left_out == {"experts off, other routes", "fewer latent steps"}
    names, left_out = choose(num=1, latent_steps=10)
    assert "route of another sample" in left_out and "random route" in names
    assert [name for name in names if name.startswith("T")] == [
        "T = 1", "T = 3", "T = 4", "T = 6", "T = 7", "T = 9", "T = 11",
    ]  # fmt: skip
    assert "other routes" in choose(gate="random")[1]


def test_shapes_judges_single_images():
    prompts = [prompt for skill in range(6) for prompt in make_prompts()[40 * skill :][:2]]
    requests = {request.caption: request for skill in SKILLS for request in all_requests(skill)}
    task = ShapesTask({}, tuple(prompt.text for prompt in prompts), tuple(prompts))
    rng = np.random.default_rng(0)
    scenes = [make_scene(requests[text], rng, only_seen=False) for text in task.texts]
    images = np.stack([to_uint8(2 * render(scene, 64) - 1) for scene in scenes])
    assert task.judge(None, None, images, 0).scores.tolist() == [1.0] * len(prompts)
    wrong = task.judge(None, None, np.roll(images, 2, axis=0), 0)
    assert wrong.scores.mean() < 0.5 and prompts[0].text in wrong.texts[0]


@pytest.mark.slow
def test_a_frozenlake_model_is_analysed_with_its_score(tmp_path):
    train(tiny_frozenlake(steps=2), epath.Path(tmp_path / "run"))
    arguments = ["--num=8", "--batch_size=8", "--sampler_steps=2"]
    code, _, error = run_entry("analyze", f"--workdir={tmp_path / 'run'}", *arguments)
    assert code == 0, error
    out = tmp_path / "run" / "analysis"
    document = json.loads((out / "analysis.json").read_text())
    scores = {entry["name"]: entry["score"] for entry in document["interventions"]}
    assert scores.pop("thinking off") is None
    assert all(0 <= score <= 1 for score in scores.values())
    assert {entry["score_name"] for entry in document["interventions"]} == {None, "goal reached"}
    assert document["run"]["group_kind"] is None and document["blocks"]["1"]["use_by_group"] is None
    assert len(document["worst"]) == 6
    for entry in document["worst"]:
        assert (out / entry["image"]).exists() and "×" in entry["what"]
