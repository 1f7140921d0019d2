"""Statistics, precision, recall and resizing, checked by hand and against public code."""

import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from feature_formula import SIZES, class_weights, features, image

from tp_jax.evals.adm import manifold
from tp_jax.evals.adm.features import PROTOCOLS, resize
from tp_jax.evals.adm.metrics import frechet_distance, inception_score, merge, moments

GOLDEN = pathlib.Path(__file__).parent / "golden"


# Statistics


def merged(rows, block):
    """Moments of all rows, merged from those of blocks."""
    parts = [moments(rows[start : start + block]) for start in range(0, len(rows), block)]
    found = parts[0]
    for part in parts[1:]:
        found = merge(found, part)
    return found


@pytest.mark.parametrize("offset", [0, 1e6])
def test_merged_moments_of_blocks_equal_those_of_all_rows(offset):
    rows = offset + np.random.RandomState(0).standard_normal((103, 5))
    found = merged(rows, 10)
    assert found.count == 103
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance(), np.cov(rows, rowvar=False), atol=1e-9)


def test_moments_of_float32_rows_are_accumulated_in_float64():
    rows = (1000 + np.random.RandomState(0).standard_normal((5000, 3))).astype(np.float32)
    wide = rows.astype(np.float64)
    found = merged(rows, 1024)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance(), np.cov(wide, rowvar=False), rtol=1e-10)


def gaussian(rows):
    return rows.mean(axis=0), np.cov(rows, rowvar=False)


@pytest.mark.parametrize("rows", [5, 300])  # with 5 rows of 60 features the covariance is singular
def test_frechet_distance_of_a_gaussian_to_itself_is_zero(rows):
    mean, covariance = gaussian(features(0, rows, width=60).astype(np.float64))
    assert abs(frechet_distance(mean, covariance, mean, covariance)) < 1e-12 * np.trace(covariance)


def test_frechet_distance_matches_a_computation_by_hand():
    a, b = np.array([4.0, 1, 0]), np.array([1.0, 9, 4])
    turn = np.linalg.qr(np.random.RandomState(0).standard_normal((3, 3)))[0]
    found = frechet_distance(
        np.zeros(3), turn * a @ turn.T, np.array([1.0, 2, 0]), turn * b @ turn.T
    )
    assert found == pytest.approx(1 + 4 + (2 - 1) ** 2 + (1 - 3) ** 2 + (0 - 2) ** 2, rel=1e-9)


def test_inception_score_matches_a_computation_by_hand():
    sure = 100 * np.eye(8)
    assert inception_score(sure) == pytest.approx(8)
    assert inception_score(np.ones((8, 5))) == pytest.approx(1)
    assert inception_score(1e4 * np.eye(8)) == pytest.approx(8)  # exp of these overflows
    # Splits of 4, 4 and 2 images, each image in another class.
    assert inception_score(100 * np.eye(10), split_size=4) == pytest.approx((4 + 4 + 2) / 3)


def plain_precision_recall(reference, sample, neighbours):
    def distance(a, b):
        return ((a.astype(np.float64) - b.astype(np.float64)) ** 2).sum()

    def share_inside(rows, balls):
        radii = [sorted(distance(x, y) for y in balls)[neighbours] for x in balls]
        inside = [
            any(distance(x, y) <= radius for y, radius in zip(balls, radii, strict=True))
            for x in rows
        ]
        return np.mean(inside)

    return share_inside(sample, reference), share_inside(reference, sample)


@pytest.mark.parametrize("block", [7, 16, 100])
@pytest.mark.parametrize("half", [True, False])
def test_precision_and_recall_equal_a_plain_loop(block, half):
    random = np.random.RandomState(3)
    # With integer features, distances are exact and some equal a radius.
    reference, sample = random.randint(0, 4, (23, 4)), random.randint(2, 6, (17, 4))
    found = manifold.precision_recall(reference, sample, 3, half=half, block=block)
    assert found == pytest.approx(plain_precision_recall(reference, sample, 3), abs=1e-7)
    assert min(found) > 0.1 and max(found) < 1


@pytest.mark.parametrize("block", [3, 4096])
def test_points_on_the_border_of_a_ball_are_inside(block):
    scores = functools.partial(manifold.precision_recall, block=block)
    # The distance of 0 to 3 equals its radius, the distance to its third neighbour -3. The balls
    # around 3, 300, … contain all points.
    near, far = np.array([[0.0], [-1], [-2], [-3]]), np.array([[3.0], [300], [500], [700]])
    assert scores(near, far) == (0.25, 1)
    assert scores(far, near) == (1, 0.25)
    assert scores(near, far + 0.01) == (0, 1)


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "evals.json").read_text())


def check_precision_recall(golden, rows, factor=1, **options):
    reference, sample = factor * features(1, rows), factor * features(2, rows, shift=0.3)
    found = manifold.precision_recall(reference, sample, **options)
    # Tolerate one image of 2,000: another order of summation may round to the other side.
    assert found == pytest.approx((golden["precision"], golden["recall"]), rel=1e-3)


def check_frechet(golden, rows):
    reference, sample = (features(seed, rows, shift) for seed, shift in ((1, 0), (2, 0.3)))
    found = [merged(part, 1024) for part in (sample, reference)]
    fid = frechet_distance(*(x for part in found for x in (part.mean, part.covariance())))
    assert fid == pytest.approx(golden["fid"], rel=1e-5)


def check_inception_score(golden, rows):
    logits = features(2, rows, shift=0.3) @ class_weights()
    assert inception_score(logits) == pytest.approx(golden["inception_score"], rel=1e-5)
    score = inception_score(logits, split_size=600)
    assert score == pytest.approx(golden["inception_score_split_600"], rel=1e-5)


@pytest.mark.slow
def test_scores_of_2000_rows_equal_those_of_the_adm_evaluator(golden):
    check_precision_recall(golden["2000"], 2000)
    check_frechet(golden["2000"], 2000)
    check_inception_score(golden["2000"], 2000)


def test_distances_that_overflow_float16_are_computed_in_float32(golden):
    check_precision_recall(golden["2000_overflow"], 2000, factor=64)
    check_precision_recall(golden["2000_overflow"], 2000, half=False)
    assert golden["2000_overflow"] != golden["2000"]


def with_float16_blocks(reference, sample, size, neighbours=3):
    """Precision and recall by a plain loop over the evaluator's blocks of `size` rows."""

    def squared(a, b, dtype):
        a, b = a.astype(dtype), b.astype(dtype)
        products = (a.astype(np.float32) @ b.T.astype(np.float32)).astype(dtype)
        norms = [x[:, 0] * x[:, 0] + x[:, 1] * x[:, 1] for x in (a, b)]
        return np.maximum(norms[0][:, None] - 2 * products + norms[1], 0)

    def block_distances(a, b):
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = squared(a, b, np.float16)
        return rounded if np.isfinite(rounded).all() else squared(a, b, np.float32)

    def distances(a, b):
        rows, columns = range(0, len(a), size), range(0, len(b), size)
        return np.block(
            [[block_distances(a[i : i + size], b[j : j + size]) for j in columns] for i in rows]
        )

    def share_inside(rows, balls):
        radii = np.sort(distances(balls, balls))[:, neighbours]
        return (distances(rows, balls) <= radii).any(1).mean()

    return share_inside(sample, reference), share_inside(reference, sample)


@pytest.mark.parametrize("size", [10, 100])
def test_the_block_size_changes_nothing_where_some_distances_overflow(size, monkeypatch):
    """Only the evaluator's own blocks decide which distances are rounded to float16."""
    # Two features, so that no order of summation matters. The squared norms of the two outliers
    # overflow float16.
    random = np.random.RandomState(0)
    reference = random.normal(80, 10, (60, 2)).astype(np.float32)
    sample = random.normal(84, 10, (50, 2)).astype(np.float32)
    reference[7], sample[23] = 190, 185
    wanted = with_float16_blocks(reference, sample, size)
    monkeypatch.setattr(manifold, "EVALUATOR_BLOCK", size)
    for block in (8, 33, 4096):
        found = manifold.precision_recall(reference, sample, block=block)
        assert found == pytest.approx(wanted, abs=1e-7), block
    full = manifold.precision_recall(reference, sample, half=False)
    assert size == 100 or full != pytest.approx(wanted)


def test_float16_is_summed_in_the_order_of_the_adm_evaluator(golden):
    [rows] = manifold._split_into_blocks(features(1, 16), 16)
    np.testing.assert_array_equal(rows.half_norms, golden["distances_to_origin"])


@pytest.mark.slow
def test_scores_of_10000_rows_equal_those_of_the_adm_evaluator(golden):
    check_precision_recall(golden["10000"], 10_000)
    check_frechet(golden["10000"], 10_000)
    check_inception_score(golden["10000"], 10_000)


# Preprocessing of images


@pytest.mark.parametrize(("half_pixel", "shift"), [(False, 0), (True, 0.5)])
def test_resize_equals_bilinear_interpolation_by_a_loop(half_pixel, shift):
    picture = image(9, 7).astype(np.float64)
    found = np.asarray(resize(jnp.asarray(picture[None], jnp.float32), half_pixel=half_pixel))[0]

    def neighbours(i, size):
        position = max((i + shift) * size / 299 - shift, 0)
        low = int(position)
        return low, min(low + 1, size - 1), position - low

    for y in range(0, 299, 11):
        for x in range(0, 299, 11):
            (top, bottom, down), (left, right, across) = neighbours(y, 9), neighbours(x, 7)
            upper = (1 - across) * picture[top, left] + across * picture[top, right]
            lower = (1 - across) * picture[bottom, left] + across * picture[bottom, right]
            np.testing.assert_allclose(
                found[y, x], (1 - down) * upper + down * lower, rtol=2e-4, atol=1e-3
            )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("protocol", "file", "scale", "shift"),
    [("adm", "resize_tf1", 128, 128), ("pytorch-fid", "resize_torch", 127.5, 127.5)],
)
def test_protocols_resize_like_the_public_code(protocol, file, scale, shift, size):
    with np.load(GOLDEN / f"{file}.npz") as file:
        expected = file["{}x{}".format(*size)]
    found = PROTOCOLS[protocol].prepare(jnp.asarray(image(*size)[None]))[0, ::13, ::13]
    np.testing.assert_allclose(scale * found + shift, expected, atol=3e-4)  # for pixels up to 255


@pytest.mark.parametrize(("protocol", "low"), [("adm", -1), ("pytorch-fid", -1)])
def test_protocols_scale_pixels_for_the_network(protocol, low):
    ends = np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), 255)]).astype(np.uint8)
    found = np.asarray(PROTOCOLS[protocol].prepare(jnp.asarray(ends)))
    assert found.shape == (2, 299, 299, 3) and found.dtype == np.float32
    high = {"adm": 127 / 128, "pytorch-fid": 1}[protocol]
    np.testing.assert_allclose(found[0], low, atol=1e-6)
    np.testing.assert_allclose(found[1], high, atol=1e-6)
