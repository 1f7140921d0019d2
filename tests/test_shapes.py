"""Shapes: contents of scenes, rendering, and a checker that reads the contents exactly."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import os

import numpy as np
import pytest
from etils import epath
from scipy import ndimage

from tp_jax.evals.geneval.layout import find_images
from tp_jax.evals.geneval.rules import judge, select
from tp_jax.evals.shapes import scores as suite
from tp_jax.messages.errors import UserError
from tp_jax.models.layers import patchify, unpatchify
from tp_jax.text.encoder import ZeroNullEncoder
from tp_jax.text.words import WordEncoder
from tp_jax.worlds.shapes import scenes
from tp_jax.worlds.shapes.checker import find_objects, same_contents
from tp_jax.worlds.shapes.render import AREAS, CENTROIDS, coverage, render
from tp_jax.worlds.shapes.scenes import (
    COLOURS,
    DIFFICULTIES,
    EASY,
    HARD,
    SHAPES,
    SKILLS,
    Request,
    all_requests,
    make_scene,
)

# Number of pictures to check. TP_JAX_PICTURES=10000 takes three minutes on two cores.
PICTURES = int(os.environ.get("TP_JAX_PICTURES", "150"))
TOLERANCE = 1.5 / 64
# The side in pixels of the images that `configs/shapes.py` trains on, after pooling.
SIDES = [(EASY, 32), (HARD, 64)]


def degraded(picture, rng):
    """Blur the picture and add noise, as in samples of a diffusion model."""
    soft = ndimage.gaussian_filter(picture, (*(rng.uniform(0, 1) * len(picture) / 64,) * 2, 0))
    return soft + rng.normal(0, rng.uniform(0, 0.04), picture.shape)


def as_uint8(picture):
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("quality", ["rendered", "degraded"])
@pytest.mark.parametrize(("difficulty", "side"), SIDES, ids=["easy", "hard"])
def test_the_checker_reads_every_picture(difficulty, side, quality):
    wrong = []
    for index in range(PICTURES):
        scene = scenes.training_scene(index, seed=1, difficulty=difficulty)
        picture = render(scene, side)
        if quality == "degraded":
            picture = degraded(picture, np.random.default_rng(index))
        if not same_contents(find_objects(as_uint8(picture)), scene.objects, TOLERANCE):
            wrong.append(index)
    assert len(wrong) <= PICTURES // 1000, wrong


def verdict(picture, metadata):
    """Return whether the picture fulfils the request in `metadata`."""
    image = as_uint8(picture)
    objects = select(suite.detect(image, metadata.get("min_size", 0.0)), metadata["tag"])
    return judge(objects, metadata, lambda group, name: suite.colours(image, group, name))[0]


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize(("difficulty", "side"), SIDES, ids=["easy", "hard"])
def test_correct_pictures_pass_and_pictures_with_one_error_fail(difficulty, side, skill):
    rng = np.random.default_rng(SKILLS.index(skill))
    requests = all_requests(skill, difficulty)
    for index in rng.choice(len(requests), 5):
        request = requests[index]
        scene = make_scene(request, rng, only_seen=False, difficulty=difficulty)
        assert verdict(render(scene, side), request.metadata), request.caption
        for name, wrong in scenes_with_one_error(request, scene):
            assert not verdict(render(wrong, side), request.metadata), (request.caption, name)


def scenes_with_one_error(request, scene):
    """Yield (kind of error, scene) for every attribute that the request asks for."""
    first, *rest = scene.objects

    def changed(**fields):
        return dataclasses.replace(scene, objects=(dataclasses.replace(first, **fields), *rest))

    others = [shape for shape in SHAPES if shape not in {one.shape for one in scene.objects}]
    yield "shape", changed(shape=others[0])
    yield "missing", dataclasses.replace(scene, objects=tuple(rest))
    if request.objects[0][1]:
        yield "colour", changed(colour=next(c for c in COLOURS if c != first.colour))
    if request.skill == "counting" and len(scene.objects) == 2:
        # The added third object is smaller, so that it fits into the scene.
        far = max(
            itertools.product((0.12, 0.5, 0.88), repeat=2),
            key=lambda at: min(max(abs(at[0] - o.x), abs(at[1] - o.y)) for o in scene.objects),
        )
        extra = dataclasses.replace(first, x=far[0], y=far[1], size=0.11)
        yield "one more", dataclasses.replace(scene, objects=(*scene.objects, extra))
    if request.relation:
        places = [(one.x, one.y, one.size) for one in scene.objects]
        swapped = tuple(
            dataclasses.replace(one, x=x, y=y, size=size)
            for one, (x, y, size) in zip(scene.objects, places[::-1], strict=True)
        )
        yield "relation", dataclasses.replace(scene, objects=swapped)


def test_fragments_of_objects_do_not_count():
    rng, passed = np.random.default_rng(0), {"whole": 0, "shuffled": 0}
    for prompt in suite.make_prompts(per_skill=6, difficulty=EASY):
        (request,) = (
            one for one in all_requests(prompt.metadata["tag"], EASY) if one.caption == prompt.text
        )
        whole = render(make_scene(request, rng, only_seen=False, difficulty=EASY), 32)
        patches = patchify(whole[None], 8)[0][rng.permutation(16)]
        shuffled = np.asarray(unpatchify(patches[None], 8, 32, 32)[0])
        passed["whole"] += verdict(whole, prompt.metadata)
        passed["shuffled"] += verdict(shuffled, prompt.metadata)
    assert passed["whole"] == 36 and passed["shuffled"] <= 3


@pytest.mark.parametrize("difficulty", DIFFICULTIES.values(), ids=list(DIFFICULTIES))
def test_training_scenes_show_all_combinations_except_held_out_ones(difficulty):
    shown = collections.Counter()
    for index in range(4_000):
        scene = scenes.training_scene(index, difficulty=difficulty)
        objects = scene.objects
        kinds = [one.shape for one in objects]
        for one in objects:
            assert (one.colour, one.shape) not in scenes.UNSEEN_COLOURS
            shown["colour", one.colour, one.shape] += 1
        for pair in itertools.combinations(sorted(set(kinds)), 2):
            assert pair not in scenes.UNSEEN_PAIRS
            shown["pair", *pair] += 1
        count = (len(kinds), kinds[0])
        assert len(set(kinds)) > 1 or count not in scenes.UNSEEN_COUNTS
        shown["count", *count] += len(set(kinds)) == 1
        shown["skill", scene.skill] += 1
    for colour, shape in itertools.product(difficulty.colours, difficulty.shapes):
        assert bool(shown["colour", colour, shape]) == (
            (colour, shape) not in scenes.UNSEEN_COLOURS
        )
    pairs = set(itertools.combinations(sorted(difficulty.shapes), 2))
    assert {key[1:] for key in shown if key[0] == "pair"} == pairs - scenes.UNSEEN_PAIRS
    counts = {key[1:] for key in shown if key[0] == "count" and key[1] > 1 and shown[key]}
    assert counts == set(itertools.product((2, 3, 4), difficulty.shapes)) - scenes.UNSEEN_COUNTS
    # Some combination of every kind is held out.
    assert pairs & scenes.UNSEEN_PAIRS
    # All skills are equally frequent, within five standard deviations over 4,000 scenes.
    assert all(abs(shown["skill", skill] / 4_000 - 1 / 6) < 0.03 for skill in SKILLS)


@pytest.mark.parametrize("difficulty", DIFFICULTIES.values(), ids=list(DIFFICULTIES))
def test_relations_in_captions_hold_and_objects_do_not_touch(difficulty):
    for index in range(500):
        objects = scenes.training_scene(index, difficulty=difficulty).objects
        for a, b in itertools.combinations(objects, 2):
            apart = max(abs(a.x - b.x), abs(a.y - b.y))
            assert apart >= a.size + b.size + scenes.MIN_GAP - 1e-9
        for one in objects:
            assert one.size + scenes.MIN_GAP <= min(one.x, one.y, 1 - one.x, 1 - one.y) + 1e-9
    pair = (("circle", None), ("square", None))
    rng = np.random.default_rng(0)
    for relation, (axis, sign) in {
        "left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1),
    }.items():  # fmt: skip
        request = Request("position", pair, relation)
        a, b = make_scene(request, rng, only_seen=True, difficulty=difficulty).objects
        assert sign * (getattr(a, axis) - getattr(b, axis)) > a.size + b.size


def test_captions_are_distinct_and_known_to_the_word_encoder():
    captions = {one.caption for skill in SKILLS for one in all_requests(skill)}
    assert {
        "a circle", "an orange ring", "three crosses", "a circle and a square",
        "a triangle above a ring", "a red square and an orange circle",
    } <= captions  # fmt: skip
    encoder = WordEncoder(scenes.WORDS, scenes.MAX_WORDS)
    found = encoder.encode(sorted(captions))
    assert len(np.unique(found["text"].reshape(len(captions), -1), axis=0)) == len(captions)
    for index in range(300):
        encoder.check(scenes.training_scene(index).caption)


def test_request_metadata_has_the_format_of_geneval():
    pair = (("circle", "red"), ("square", "blue"))
    assert Request("position", pair, "left of").metadata == {
        "tag": "position",
        "include": [
            {"class": "square", "count": 1, "color": "blue"},
            {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]},
        ],
        "prompt": "a red circle left of a blue square",
    }
    assert Request("counting", (("ring", None),) * 3).metadata == {
        "tag": "counting",
        "include": [{"class": "ring", "count": 3}],
        "exclude": [{"class": "ring", "count": 4}],
        "prompt": "three rings",
    }


def test_coverage_has_the_area_and_centroid_of_the_shape():
    for shape in SHAPES:
        alpha = coverage(shape, 0.47, 0.52, 0.2, 256)
        centres = (np.arange(256) + 0.5) / 256
        assert alpha.sum() / 256**2 == pytest.approx(AREAS[shape] * 0.2**2, rel=0.01)
        x = alpha.sum(0) @ centres / alpha.sum()
        y = alpha.sum(1) @ centres / alpha.sum()
        assert x == pytest.approx(0.47, abs=1e-3)
        assert y == pytest.approx(0.52 + CENTROIDS[shape] * 0.2, abs=1e-3)


def test_antialiasing_equals_the_mean_over_finer_pixels():
    for shape in SHAPES:
        coarse = coverage(shape, 0.5, 0.5, 0.21, 32)
        fine = coverage(shape, 0.5, 0.5, 0.21, 32 * 16) > 0.5
        covered = fine.reshape(32, 16, 32, 16).mean((1, 3))
        assert np.abs(coarse - covered).mean() < 0.01 and np.abs(coarse - covered).max() < 0.5


def test_hard_scenes_are_those_of_earlier_versions():
    text = "".join(repr(scenes.training_scene(index, difficulty=HARD)) for index in range(300))
    digest = "569eec97fc3ca0bce8a5a653b6ea7ef365b1520c44535f98f23117bc3af33e22"
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_scenes_are_seeded_and_rendered_at_any_size():
    scene = scenes.training_scene(5)
    assert scene == scenes.training_scene(5) != scenes.training_scene(6)
    assert scenes.training_scene(5, seed=1) != scene
    large = render(scene, 128).reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(large - render(scene, 64)).mean() < 2e-3


@pytest.mark.parametrize("difficulty", DIFFICULTIES.values(), ids=list(DIFFICULTIES))
def test_half_of_the_prompts_are_unseen_combinations(difficulty):
    make_prompts = functools.partial(suite.make_prompts, difficulty=difficulty)
    prompts = make_prompts(per_skill=20)
    assert [prompt.index for prompt in prompts] == list(range(120))
    count = collections.Counter((p.metadata["tag"], p.metadata["seen"]) for p in prompts)
    assert count["single_object", True] == 20
    for skill in SKILLS[1:]:
        assert count[skill, True] == count[skill, False] == 10
    assert prompts == make_prompts(per_skill=20) != make_prompts(per_skill=20, seed=1)


def test_word_encoder_outputs_computed_by_hand():
    encoder = WordEncoder(("a", "red", "ring"), tokens=4)
    found = encoder.encode(["a Red, red", ""])
    words, places = found["text"][..., :3], found["text"][..., 3:]
    np.testing.assert_array_equal(words[0], [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(places[0], np.eye(4))
    np.testing.assert_array_equal(words[1], 0)
    np.testing.assert_array_equal(found["pooled"], [[1, 2, 0], [0, 0, 0]])
    assert encoder.space.width == 7 and encoder.space.pooled_width == 3
    with pytest.raises(
        UserError, match="has 5 words, but the encoder accepts at most 4: shorten it"
    ):
        encoder.check("a a a a a")
    with pytest.raises(UserError, match="doesn't know the word 'square'"):
        encoder.encode(["a square"])
    assert encoder.space != WordEncoder(("a", "ring", "red"), 4).space


def test_zero_null_encodes_the_empty_prompt_as_zeros():
    words = WordEncoder(("a", "ring"), 3)
    encoder = ZeroNullEncoder(words)
    found, plain = encoder.encode(["a ring", ""]), words.encode(["a ring", ""])
    np.testing.assert_array_equal(found["text"][0], plain["text"][0])
    assert plain["text"][1].any() and not found["text"][1].any() and not found["pooled"][1].any()
    assert encoder.space.tokens == 3 and encoder.space.identity != words.space.identity
    with pytest.raises(UserError, match="doesn't know the word 'cross'"):
        encoder.check("a cross")


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no folders 00000"):
        suite.prompts_of_images(find_images(epath.Path(tmp_path)))
