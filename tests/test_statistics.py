"""Statistics of routings whose answers are known."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, mutual_info_score

from tp_jax import analysis
from tp_jax.analysis.dependence import PERMUTATIONS

# Sampler steps, latent steps, samples, tokens, experts: 51,200 choices.
S, T, B, N, M = 8, 4, 40, 40, 4
STEP, LATENT, SAMPLE, PLACE = np.ogrid[:S, :T, :B, :N]
RNG = np.random.default_rng(0)
# Every place and every class of samples has each content equally often.
CONTENT = (SAMPLE + PLACE) % M
# The expert that a step asks for with probability 0.7, and each other one with 0.1.
NOISY = np.where(RNG.random((S, T, B, N)) < 0.6, STEP % M, RNG.integers(M, size=(S, T, B, N)))
NOISY_BITS = 2 + 0.7 * np.log2(0.7) + 0.3 * np.log2(0.1)
# name -> (experts, {variable: bits}); the bits of all other variables are 0.
ROUTINGS = {
    "random": (RNG.integers(M, size=(S, T, B, N)), {}),
    "constant": (0 * STEP, {}),
    "by timestep": (STEP % M, {"step": 2.0}),
    "by noisy timestep": (NOISY, {"step": NOISY_BITS}),
    "by place": (PLACE % M, {"place": 2.0}),
    "by sample": (SAMPLE % M, {"sample": 2.0}),
    "by content": (CONTENT, {"content": 2.0}),
    "alternating": (LATENT % 2, {"latent": 1.0}),
}
VARIABLES = {
    "step": STEP,
    "latent": LATENT,
    "place": PLACE,
    "sample": SAMPLE % M,
    "content": CONTENT,
}


def routing(name):
    experts, bits = ROUTINGS[name]
    return np.broadcast_to(experts, (S, T, B, N)), bits


def table(experts, variable):
    labels = np.broadcast_to(VARIABLES[variable], experts.shape)
    return analysis.cross_table(labels, experts, labels.max() + 1, M)


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("name", ROUTINGS)
def test_information_of_known_routings(name, variable):
    experts, bits = routing(name)
    counts = table(experts, variable)
    wanted = bits.get(variable, 0.0)
    assert abs(analysis.miller_madow(counts) - wanted) < 0.02
    labels = np.broadcast_to(VARIABLES[variable], experts.shape).ravel()
    nats = mutual_info_score(labels, experts.ravel())
    assert analysis.mutual_information(counts) == pytest.approx(nats / np.log(2), abs=1e-9)


def test_a_random_gate_is_inside_the_permuted_interval():
    """The interval of a variable misses in 1 of 40 cases, so up to 2 of these 20 may be outside."""
    outside = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        experts = rng.integers(M, size=(S, T, B, N))
        by_step = analysis.count_experts(experts, M, (1, 3)).swapaxes(0, 1)
        classes = np.eye(M, dtype=int)[np.arange(B) % M]
        content = np.broadcast_to(CONTENT, experts.shape)
        labels, chosen = (
            np.moveaxis(a, (2, 3), (0, 1)).reshape(B * N, -1) for a in (content, experts)
        )
        permuted = {
            "step": analysis.permute_levels(by_step, rng),
            "place": analysis.permute_levels(analysis.count_experts(experts, M, (0, 1)), rng),
            "sample": analysis.permute_units(
                analysis.count_experts(experts, M, (0, 1, 3)), classes, rng
            ),
            "content": analysis.permute_labels(labels, chosen, M, M, rng),
        }
        for variable, tables in permuted.items():
            counts = table(experts, variable)
            assert len(tables) == PERMUTATIONS and (tables.sum((1, 2)) == counts.sum()).all()
            found = analysis.information(counts, tables)
            outside += found.bits > found.permuted_high
            assert found.permuted_mean < 0.005 and found.corrected < 0.001
    assert outside <= 2


@pytest.mark.parametrize(
    ("name", "variable"), [("by timestep", "step"), ("by place", "place"), ("by sample", "sample")]
)
def test_a_dependence_is_outside_the_permuted_interval(name, variable):
    experts, rng = routing(name)[0], np.random.default_rng(1)
    if variable == "sample":
        counts = analysis.count_experts(experts, M, (0, 1, 3))
        tables = analysis.permute_units(counts, np.eye(M, dtype=int)[np.arange(B) % M], rng)
    else:
        axes = (1, 3) if variable == "step" else (0, 1)
        counts = analysis.count_experts(experts, M, axes)
        tables = analysis.permute_levels(
            counts.swapaxes(0, 1) if variable == "step" else counts, rng
        )
    found = analysis.information(table(experts, variable), tables)
    assert found.bits == pytest.approx(2) and found.permuted_high < 0.5


def test_samples_that_differ_by_themselves_do_not_seem_to_follow_their_class():
    """Whole samples are permuted; permuting single choices would find a dependence by chance."""
    rng = np.random.default_rng(5)
    experts = np.broadcast_to(rng.integers(M, size=B)[None, None, :, None], (S, T, B, N))
    classes = np.eye(M, dtype=int)[np.arange(B) % M]
    counts = table(experts, "sample")
    whole = analysis.permute_units(analysis.count_experts(experts, M, (0, 1, 3)), classes, rng)
    found = analysis.information(counts, whole)
    labels = np.broadcast_to(SAMPLE % M, experts.shape).reshape(-1, 1)
    single = analysis.permute_labels(labels, experts.reshape(-1, 1), M, M, rng, permutations=20)
    assert found.bits <= found.permuted_high
    assert found.bits > 10 * analysis.information(counts, single).permuted_high


def test_a_baseline_from_part_of_the_samples_is_scaled():
    rng = np.random.default_rng(2)
    experts = rng.integers(M, size=(S, T, 10 * B, N))
    counts = analysis.count_experts(experts, M, (0, 1))  # [samples, place, expert]
    whole = analysis.information(counts.sum(0), analysis.permute_levels(counts, rng))
    part = analysis.permute_levels(counts[::10], rng)
    found = analysis.information(counts.sum(0), part, counts[::10].sum())
    assert found.permuted_mean == pytest.approx(whole.permuted_mean, rel=0.1)


def test_miller_madow_by_hand_and_its_bias():
    # H(level) and H(expert) have 2 cells each, H(both) 3, of 10 choices.
    counts = np.array([[4, 2], [0, 4]])
    plug_in = analysis.mutual_information(counts)
    assert analysis.miller_madow(counts) == pytest.approx(
        plug_in + (2 + 2 - 3 - 1) / 20 / np.log(2)
    )
    assert analysis.miller_madow(np.zeros((2, 2))) == 0
    # A dependence of NOISY_BITS, seen in few choices: the plug-in estimate is too large.
    rng = np.random.default_rng(0)
    p = np.full((M, M), 0.1 / M) + np.eye(M) * 0.6 / M
    tables = rng.multinomial(200, p.ravel(), size=2000).reshape(-1, M, M)
    plug_in = analysis.mutual_information(tables).mean()
    corrected = np.mean([analysis.miller_madow(counts) for counts in tables])
    assert plug_in - NOISY_BITS > 0.025 and abs(corrected - NOISY_BITS) < 0.01


def test_kept_and_use_of_known_routings():
    kept = {name: analysis.kept(routing(name)[0]) for name in ROUTINGS}
    assert (kept["alternating"] == 0).all() and kept["alternating"].shape == (S, T - 1)
    assert (kept["constant"] == 1).all() and (kept["by place"] == 1).all()
    assert abs(kept["random"] - 1 / M).max() < 0.05
    use = {name: analysis.use(routing(name)[0], M) for name in ROUTINGS}
    assert use["by timestep"].shape == (S, T, M)
    np.testing.assert_array_equal(use["by timestep"][:, 1], np.eye(M)[np.arange(S) % M])
    np.testing.assert_array_equal(use["alternating"][3], np.eye(M)[np.arange(T) % 2])
    by_place = analysis.use_by_place(routing("by place")[0], M)
    np.testing.assert_array_equal(by_place[2], np.eye(M)[np.arange(N) % M])
    membership = np.eye(M + 1)[np.arange(B) % M]
    by_group = analysis.use_by_group(routing("by sample")[0], M, membership)
    np.testing.assert_array_equal(by_group[:M, 0], np.eye(M))
    assert np.isnan(by_group[M]).all()


def test_collapse_of_known_uses():
    use = np.array([[0.25] * 4, [0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.97, 0.03, 0, 0]])
    found = analysis.effective_experts(use)
    wanted = np.exp(-0.97 * np.log(0.97) - 0.03 * np.log(0.03))
    np.testing.assert_allclose(found, [4, 2, 1, wanted])
    assert [analysis.dead_experts(shares) for shares in use] == [[], [2, 3], [1, 2, 3], [2, 3]]


def test_entropy_on_the_host_and_on_a_device_and_without_temperature():
    logits = np.random.default_rng(0).normal(size=(5, 6, M)).astype(np.float32)
    cold = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    warm = np.exp(logits / 5) / np.exp(logits / 5).sum(-1, keepdims=True)
    wanted = -(cold * np.log(cold)).sum(-1)
    np.testing.assert_allclose(analysis.entropy(cold), wanted, rtol=1e-5)
    np.testing.assert_allclose(analysis.entropy(jnp.asarray(cold)), wanted, rtol=1e-5)
    np.testing.assert_allclose(analysis.without_temperature(warm, 5.0), cold, rtol=1e-4)
    assert analysis.entropy(np.eye(3)).tolist() == [0, 0, 0]


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("to", [np.asarray, jnp.asarray])
def test_movement_agrees_with_a_plain_loop(to):
    tokens = np.random.default_rng(0).normal(size=(2, 4, 3, 5, 6)).astype(np.float32)
    moves, ratios = analysis.moves(to(tokens)), analysis.ratios(to(tokens))
    together = analysis.together(to(tokens))
    assert (moves.shape, ratios.shape, together.shape) == ((2, 3, 3, 5), (2, 2, 3, 5), (2, 3))
    for s in range(2):
        for b in range(3):
            x = tokens[s, :, b]
            for n in range(5):
                lengths = [np.linalg.norm(x[t + 1, n] - x[t, n]) for t in range(3)]
                wanted = [lengths[t] / np.linalg.norm(x[t, n]) for t in range(3)]
                np.testing.assert_allclose(moves[s, :, b, n], wanted, rtol=1e-4)
                wanted = [lengths[1] / lengths[0], lengths[2] / lengths[1]]
                np.testing.assert_allclose(ratios[s, :, b, n], wanted, rtol=1e-4)
            pairs = [
                cosine(x[3, i] - x[0, i], x[3, j] - x[0, j])
                for i in range(5)
                for j in range(5)
                if i != j
            ]
            assert together[s, b] == pytest.approx(np.mean(pairs), abs=1e-5)


def test_movement_of_known_trajectories():
    direction, step = np.ones((1, 7, 8)), np.arange(5.0)[:, None, None, None]
    converging = 1 + (1 - 0.5**step) * direction  # [T, B, N, D]
    np.testing.assert_allclose(analysis.ratios(converging), 0.5)
    np.testing.assert_allclose(analysis.together(converging), 1)
    opposite = direction[:, :2] * np.array([[1], [-1]])
    np.testing.assert_allclose(analysis.together(step * opposite), -1)
    still = np.ones((3, 1, 2, 8))
    assert np.isnan(analysis.ratios(still)).all() and (analysis.moves(still) == 0).all()


def test_principal_components_agree_with_scikit_learn():
    points = np.random.default_rng(0).normal(size=(60, 9)) * np.arange(1, 10) + 3
    found, explained = analysis.principal_components(points)
    wanted = PCA(2)
    projected = wanted.fit_transform(points)
    np.testing.assert_allclose(np.abs(found), np.abs(projected), atol=1e-8)
    np.testing.assert_allclose(explained, wanted.explained_variance_ratio_)


def test_clusters_follow_the_content_and_not_the_time():
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=300)
    content = 5 * np.eye(3, 8)[kind] + 0.3 * rng.normal(size=(300, 8))
    # Each step has another offset and scale, as adaLN gives it.
    offset, scale = 50 * rng.normal(size=(4, 2, 8)), rng.uniform(0.5, 20, size=(4, 2, 8))
    labels = analysis.content_clusters(offset + scale * content[:, None, None], 3)
    assert labels.shape == (300, 4, 2)
    wanted = np.broadcast_to(kind[:, None, None], labels.shape)
    assert adjusted_rand_score(wanted.ravel(), labels.ravel()) > 0.99


def test_similarity_agrees_with_a_plain_loop():
    rng = np.random.default_rng(0)
    lora_a, lora_b = rng.normal(size=(5, 6, 3, 2)), rng.normal(size=(5, 3, 2, 6))
    lora_a[1], lora_b[1] = lora_a[0], lora_b[0]
    lora_a[2], lora_b[2] = lora_a[0], -lora_b[0]
    lora_b[3] = 0
    inputs = rng.normal(size=(70, 6))
    found = analysis.similarity(lora_a, lora_b, inputs)
    assert found.shape == (3, 5, 5)
    np.testing.assert_allclose(found[:, 0, 1], 1)
    np.testing.assert_allclose(found[:, 0, 2], -1)
    assert np.isnan(found[:, 3]).all() and np.isnan(found[:, :, 3]).all()
    for part in range(3):
        delta = [[u @ lora_a[m, :, part] @ lora_b[m, part] for u in inputs] for m in (0, 4)]
        wanted = np.mean([cosine(a, b) for a, b in zip(*delta, strict=True)])
        assert found[part, 0, 4] == pytest.approx(wanted)
