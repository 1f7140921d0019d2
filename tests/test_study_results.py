"""Intervals of paired differences against scipy and simulations, verdicts, table, plot, page."""

import json
import pathlib

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from tp_jax.studies.claims import CLAIMS, claims_page, pairs_of, verdict
from tp_jax.studies.intervals import bootstrap_means, paired_difference
from tp_jax.studies.plot import lines_of_runs, save_plot, show_most
from tp_jax.studies.table import as_markdown


def test_intervals_are_those_of_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.normal(1.0, 1.0, 12), rng.normal(0.0, 1.0, 12)
    found = paired_difference(first, second)
    assert found.mean == pytest.approx(np.mean(first - second))
    wanted = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found.t == pytest.approx(tuple(wanted))
    wanted = stats.bootstrap(
        (first - second,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert found.bootstrap == pytest.approx(tuple(wanted), abs=0.03)
    assert (found.seeds, found.examples) == (12, 0)


def test_the_bootstrap_of_a_table_has_the_variance_of_drawing_rows_and_columns():
    """Compare with a plain loop that draws seeds and examples."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4, 1)) + rng.normal(size=(1, 9)) + 0.3 * rng.normal(size=(4, 9))
    found = bootstrap_means(table, 20_000, np.random.default_rng(1))
    wanted = [table[rng.integers(0, 4, 4)][:, rng.integers(0, 9, 9)].mean() for _ in range(20_000)]
    assert found.mean() == pytest.approx(table.mean(), abs=0.02)
    assert np.quantile(found, [0.025, 0.5, 0.975]) == pytest.approx(
        np.quantile(wanted, [0.025, 0.5, 0.975]), abs=0.05
    )


def coverage(seeds, examples, of_seed, of_example, trials=150):
    """The share of simulated studies whose intervals contain the true difference, 0.3."""
    rng = np.random.default_rng(seeds)
    hits = {"bootstrap": 0, "interval": 0}
    for trial in range(trials):
        second = rng.normal(size=(seeds, examples))
        away = 0.3 + of_seed * rng.normal(size=(seeds, 1))
        away = away + of_example * rng.normal(size=(1, examples))
        first = second + away + 0.1 * rng.normal(size=(seeds, examples))
        found = paired_difference(first, second, draws=200, seed=trial)
        for name in hits:
            low, high = getattr(found, name)
            hits[name] += low <= 0.3 <= high
    return {name: count / trials for name, count in hits.items()}


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds):
    found = coverage(seeds, 60, of_seed=0.2, of_example=0.4)
    assert 0.92 <= found["interval"] <= 1.0
    # Where training varies more than the examples, the bootstrap is too narrow for so few seeds.
    found = coverage(seeds, 60, of_seed=0.5, of_example=0.1)
    assert 0.92 <= found["interval"] <= 0.99
    assert found["bootstrap"] < 0.91


def test_few_scores_have_no_interval():
    found = paired_difference(np.array([1.0]), np.array([0.5]))
    assert (found.mean, found.bootstrap, found.t) == (0.5, None, None)
    assert found.interval is None and found.half_width is None
    # With examples, one seed has an interval, which says nothing about other seeds.
    found = paired_difference(np.array([[1.0, 2.0, 4.0]]), np.zeros((1, 3)))
    assert found.t is None and found.bootstrap[0] < found.mean < found.bootstrap[1]
    assert found.half_width == (found.bootstrap[1] - found.bootstrap[0]) / 2


def test_pairing_takes_away_what_both_share():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, (3, 200))
    found = paired_difference(hard + 0.1, hard)
    assert found.mean == pytest.approx(0.1) and found.half_width < 1e-9


@pytest.mark.parametrize(
    ("interval", "higher", "said"),
    [
        ([0.1, 0.4], True, "holds"),
        ([-0.1, 0.4], True, "can't tell"),
        ([-0.3, -0.1], True, "the opposite holds"),
        ([-0.3, -0.1], False, "holds"),
        ([0.1, 0.4], False, "the opposite holds"),
        (None, True, "not measured"),
    ],
)
def test_verdicts_follow_the_interval(interval, higher, said):
    assert verdict({"interval": interval}, higher) == said


def results(**changes):
    """The results of a study of three variants, one of which has a hole."""

    def row(what, scores):
        return {
            "what": what, "scores": {"shapes": scores}, "parameters": 2_000,
            "trained_parameters": 1_000, "train_flops": 1.5e12, "sample_flops": 2e9,
            "minutes": {"train": 3.0, "shapes": 0.5}, "run_of": what, "latent_steps": 2.0,
        }  # fmt: skip

    def difference(variant, than, mean, half):
        ends = [mean - half, mean + half]
        return {
            "variant": variant, "than": than, "mean": mean, "bootstrap": ends, "t": ends,
            "interval": ends, "half_width": half, "seeds": 2, "examples": 40,
        }  # fmt: skip

    return {
        "study": "gate",
        "what": "gates",
        "date": "2026-01-31",
        "config": "configs/shapes.py:think",
        "fields": {"train.steps": 500},
        "seeds": [0, 1],
        "reference": "learned",
        "measures": {"shapes": {"title": "correct, %", "higher_is_better": True, "factor": 100.0}},
        "variants": {
            "learned": row("the gate", {"0": 0.50, "1": 0.54}),
            "random": row("chance", {"0": 0.40, "1": 0.45}),
            "first": row("one expert", {}),
        },
        "differences": {
            "shapes": [
                difference("random", "learned", -0.095, 0.03),
                difference("learned", "random", 0.095, 0.03),
            ]
        },
        "left_out": {"second": "there is none"},
        "holes": [{"variant": "first", "seed": 0, "problem": "it ended with exit code 3"}],
        "commands": {"first, seed 0": ["python -m tp_jax.main --config=x.py"]},
        "versions": {"tp_jax": "0.1.0"},
        "commit": "1a2b3c",
    } | changes


def test_the_table_has_scores_differences_costs_holes_and_commands():
    table = as_markdown(results())
    assert (
        "| `random` | chance | 42.5 ± 3.5 | -9.5 | -12.5 … -6.5 | -12.5 … -6.5 | ± 3.0 |" in table
    )
    assert "| `learned` | the gate | 52.0 ± 2.8 | reference |" in table
    assert "| `first` | one expert | — | — |" in table
    assert "| `random` | 2,000 | 1,000 | 1.5e+12 | 2e+09 | 3.0 | 0.5 |" in table
    assert "- `second`: there is none" in table
    assert "- first, seed 0: it ended with exit code 3" in table
    assert table.endswith("# first, seed 0\npython -m tp_jax.main --config=x.py\n```\n")
    assert "configs/shapes.py:think with `train.steps=500`, 2 seeds, 1a2b3c" in table


def test_the_plot_is_written(tmp_path):
    save_plot(tmp_path / "gate.png", results())
    with Image.open(tmp_path / "gate.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0] > 40).mean(1)
    # The two variants with scores have marks, and the third has none.
    assert pixels.shape[1] > 1000 and (blue > 0).sum() > 20


def test_a_variant_far_away_does_not_hide_the_others():
    figure = Figure()
    for far, limited in ((60.0, True), (3.0, False)):
        axes = figure.add_subplot()
        axes.plot([-1, 2, far], [0, 1, 2])
        show_most(axes, {0: [-1.0, 0.5], 1: [2.0, 1.0], 2: [far, far]}, 0.0)
        assert (axes.get_xlim()[1] < 3) == limited
        assert [text.get_text() for text in axes.texts] == (["60 →"] if limited else [])


def test_runs_with_several_latent_steps_are_drawn_against_them(tmp_path):
    plain = results()
    assert lines_of_runs(plain, "shapes") == {}
    # The second variant is the run of the first, sampled with fewer latent steps.
    plain["variants"]["random"] |= {"run_of": "the gate", "latent_steps": 1.5}
    lines = lines_of_runs(plain, "shapes")
    assert lines == {"the gate": [(1.5, pytest.approx(-9.5), 3.0), (2.0, 0.0, 0.0)]}
    save_plot(tmp_path / "curve.png", plain)
    save_plot(tmp_path / "plain.png", results())
    with Image.open(tmp_path / "curve.png") as curve, Image.open(tmp_path / "plain.png") as other:
        assert curve.size[1] > other.size[1] + 300


def test_without_any_score_there_is_a_table_but_no_plot(tmp_path):
    empty = results(measures={}, differences={})
    save_plot(tmp_path / "gate.png", empty)
    assert not (tmp_path / "gate.png").exists()
    assert "it ended with exit code 3" in as_markdown(empty)


def test_claims_name_variants_that_their_studies_have():
    from tp_jax.studies import STUDIES

    for claim in CLAIMS:
        assert claim.study in STUDIES
    pairs = pairs_of("gate", "random", ["learned", "random", "first", "random-wide"])
    assert pairs == [
        ("learned", "random"), ("first", "random"), ("random-wide", "random"),
        ("learned", "random-wide"),
    ]  # fmt: skip


def test_the_page_says_which_claims_hold():
    page = "\n".join(claims_page({"gate-shapes": results()}, "studies/"))
    assert (
        "| A learned gate is better than random experts | reviewers "
        "| [shapes.py:think](studies/gate-shapes.md), correct, %, 2 seeds "
        "| +9.5 | +6.5 … +12.5 | holds | ± 3 |" in page
    )
    assert "Two experts are better than one | paper | not measured yet" in page
    assert (
        "- [gate-shapes](studies/gate-shapes.md): gates; configs/shapes.py:think with "
        "`train.steps=500`, 2 seeds" in page
    )


def test_the_page_works_without_studies():
    page = "\n".join(claims_page({}, "studies/"))
    assert page.count("not measured yet") == len(CLAIMS)
    assert "configs/sd3_coco.py" in page and "configs/imagenet256.py" in page


def test_results_are_json(tmp_path):
    path = pathlib.Path(tmp_path / "results.json")
    path.write_text(json.dumps(results()))
    assert as_markdown(json.loads(path.read_text())) == as_markdown(results())
