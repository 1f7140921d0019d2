"""Attention: TPU and cuDNN kernels against XLA's, and the choice between them."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run_entry
from jax._src.cudnn import fused_attention_stablehlo as cudnn_rules
from tiny_models import TINY, example, random_params

from tp_jax.messages.errors import UserError
from tp_jax.models import attention as attention_lib
from tp_jax.models import build_model
from tp_jax.models.splash import block_size, padded, splash_attention
from tp_jax.models.stack import REMAT_POLICIES
from tp_jax.models.xla_attention import xla_attention
from tp_jax.parallel.axes import ONE_DEVICE
from tp_jax.parallel.mesh import create_mesh
from tp_jax.parallel.sharding import batch_sharding, tree_shardings
from tp_jax.performance.traced_flops import traced_flops

interpreted = functools.partial(splash_attention, interpret=True)


def inputs(tokens, head_dim, dtype, batch=1, heads=2):
    """Queries, keys, values and the gradient of the result.

    The first tokens attend to all tokens almost equally, and the last to very few.
    """
    rng = np.random.default_rng(tokens)
    q, k, v, gradient = rng.normal(size=(4, batch, tokens, heads, head_dim))
    q *= np.linspace(0.01, 9, tokens)[:, None, None]
    return [jnp.asarray(x, dtype) for x in (q, k, 2 + v, gradient)]


def values_and_gradients(f, q, k, v, gradient):
    out, pull = jax.vjp(jax.jit(f), q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *pull(gradient))]


def xla(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def in_float32(f, *arrays):
    return values_and_gradients(f, *(x.astype(jnp.float32) for x in arrays))


def exact(q, k, v, gradient):
    """Return the output of attention and its gradients in float64, by the closed form."""
    # Axes: batch, heads, tokens, features.
    q, k, v, gradient = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (q, k, v, gradient))
    scale = q.shape[-1] ** -0.5
    scores = q @ k.swapaxes(-1, -2) * scale
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = gradient @ v.swapaxes(-1, -2)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    found = p @ v, ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ gradient
    return [array.swapaxes(1, 2) for array in found]


def error(found, wanted):
    """The largest error of each array, relative to its largest value."""
    return [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize(
    ("tokens", "head_dim", "dtype", "heads"),
    [
        (333, 72, "float32", 2),
        (333, 64, "bfloat16", 2),
        pytest.param(4250, 64, "float32", 1, marks=pytest.mark.slow),
        pytest.param(4250, 72, "bfloat16", 1, marks=pytest.mark.slow),
        (2, 64, "float32", 1),
        (128, 8, "float32", 1),
    ],
)
def test_splash_has_the_values_and_gradients_of_the_closed_form(tokens, head_dim, dtype, heads):
    arrays = inputs(tokens, head_dim, dtype, batch=1 if tokens > 400 else 2, heads=heads)
    wanted = exact(*arrays)
    found = error(values_and_gradients(interpreted, *arrays), wanted)
    if dtype == "float32":
        assert max(found) < 2e-5
        return
    # No further from the exact values than XLA's bfloat16 attention, with a margin for luck.
    theirs = error(values_and_gradients(xla, *arrays), wanted)
    assert max(found) < 0.025 and max(found) < 6 * max(theirs), (found, theirs)


@pytest.mark.parametrize(
    ("tokens", "head_dim", "dtype"),
    [(333, 72, "float32"), (333, 64, "bfloat16"), (2, 8, "float32")],
)
def test_xla_has_the_values_and_gradients_of_jax_nn(tokens, head_dim, dtype):
    def ours(q, k, v):
        return xla_attention(jnp.stack([q, k, v], axis=2))

    arrays = inputs(tokens, head_dim, dtype, batch=2)
    wanted = in_float32(xla, *arrays)
    found = error(values_and_gradients(ours, *arrays), wanted)
    if dtype == "float32":
        assert max(found) < 1e-5
        return
    # The gradient uses the result after its rounding to bfloat16, as the kernels do.
    theirs = error(values_and_gradients(xla, *arrays), wanted)
    assert max(found) < 0.025 and max(found) < 4 * max(theirs), (found, theirs)


def test_xla_stores_no_attention_weights_for_its_backward_pass():
    arrays = jax.ShapeDtypeStruct((2, 333, 3, 2, 8), jnp.float32)
    _, pull = jax.eval_shape(functools.partial(jax.vjp, xla_attention), arrays)
    assert max(leaf.size for leaf in jax.tree.leaves(pull)) == arrays.size


def test_blocks_pad_few_tokens_and_are_neither_tiny_nor_too_large():
    for tokens in range(1, 20_000, 7):
        block = block_size(tokens)
        assert block % 128 == 0 and block <= 768
        assert padded(tokens, block) <= padded(tokens, 128) + (tokens > 768) * 3 * 128
        assert block >= 384 or padded(tokens, block) == block
    assert block_size(4096) == 512


@pytest.fixture
def on_tpu(monkeypatch):
    """Make the code take the CPU for a TPU, and interpret its kernels."""
    monkeypatch.setattr(attention_lib, "device_kind", lambda: "TPU v5 lite")
    monkeypatch.setattr(attention_lib, "splash_attention", interpreted)


def loss_of(kind, **fields):
    """(function of params and inputs, params, inputs) of a tiny model with other fields."""
    model = build_model(dataclasses.replace(TINY[kind], **fields))

    def loss(params, x, timestep, condition):
        return jnp.square(model.apply({"params": params}, x, timestep, condition)[0]).sum()

    return loss, random_params(model), example(model, batch=4)


MESH = dict(data=2, tensor=2)


def test_splash_works_on_a_mesh_in_a_scan_with_remat(on_tpu):
    heads, width = 4, 32
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 6, width)), jnp.float32)
    layers = jnp.asarray(0.3 * rng.normal(size=(2, width, 3 * width)), jnp.float32)

    def loss(x, layers, implementation):
        def block(x, kernel):
            qkv = (x @ kernel).reshape(*x.shape[:2], 3, heads, -1)
            return x + attention_lib.attention(qkv, heads, implementation), None

        out, _ = jax.lax.scan(jax.checkpoint(block, policy=REMAT_POLICIES["full"]), x, layers)
        return jnp.square(out).sum()

    f = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    wanted = f(x, layers, "xla")
    assert_trees_close(f(x, layers, "splash"), wanted)
    mesh = create_mesh(ONE_DEVICE | MESH, jax.devices()[:4])
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, batch_sharding(mesh))
        assert_trees_close(f(sharded, layers, "splash"), wanted)


def test_on_a_mesh_each_device_has_its_own_samples_and_heads(on_tpu):
    loss, params, arrays = loss_of("mmdit", attention="splash", remat="full")
    mesh = create_mesh(ONE_DEVICE | MESH, jax.devices()[:4])
    params = jax.device_put(params, tree_shardings(params, mesh))
    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(loss)).trace(params, *arrays)
    # Half of the 4 samples and half of the 2 heads.
    assert {shape[0] for shape in forward_kernels(traced.jaxpr)} == {2 * 1}


def assert_trees_close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


def forward_kernels(jaxpr):
    """Result shapes of the forward kernels in a jaxpr, without those that nobody uses."""
    from jax.interpreters import partial_eval

    def walk(jaxpr):
        for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
            name = str(equation.params.get("name_and_src_info", equation.params.get("name")))
            if equation.primitive.name == "pallas_call" and "fwd" in name:
                yield equation.outvars[-1].aval.shape
            elif equation.primitive.name != "pallas_call":
                for leaf in jax.tree.leaves(
                    equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")
                ):
                    if hasattr(leaf, "eqns"):
                        yield from walk(leaf)

    jaxpr = jaxpr.jaxpr
    return list(walk(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialization_does_not_run_the_forward_kernel_again(remat, on_tpu):
    flops = {}
    for policy in ("none", remat):
        loss, params, arrays = loss_of("dit", remat=policy, attention="splash")
        traced = jax.jit(jax.grad(loss)).trace(params, *arrays)
        flops[policy] = len(forward_kernels(traced.jaxpr))
    assert flops[remat] == flops["none"] > 0


def test_flops_of_a_kernel_are_those_of_its_blocks():
    tokens, head_dim = 1000, 64
    arrays = inputs(tokens, head_dim, "float32")[:3]
    whole = 2 * 2 * padded(tokens, block_size(tokens)) ** 2 * head_dim * 2  # heads
    assert traced_flops(jax.jit(splash_attention).trace(*arrays).jaxpr) == whole

    def loss(*arrays):
        return splash_attention(*arrays).sum()

    # The backward pass computes the scores again: five products instead of four.
    found = traced_flops(jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays).jaxpr)
    assert found == pytest.approx(3.5 * whole, rel=1e-3)


@pytest.mark.parametrize(
    ("tokens", "head_dim", "wanted"),
    [(64, 64, "xla"), (256, 72, "xla"), (333, 64, "xla"), (512, 72, "splash"), (1024, 72, "splash"),
     (1178, 64, "splash"), (4250, 64, "splash")],
)  # fmt: skip
def test_on_tpus_long_sequences_use_splash(tokens, head_dim, wanted, on_tpu):
    shape = 1, tokens, 24, head_dim
    assert attention_lib.choose_attention(shape, jnp.dtype("bfloat16")) == wanted


def test_elsewhere_xla_is_chosen():
    assert attention_lib.choose_attention((1, 4250, 24, 64), jnp.dtype("bfloat16")) == "xla"


def test_splash_is_not_chosen_where_its_precision_is_impossible(on_tpu):
    shape = 1, 4250, 24, 64
    for precision, dtype, wanted in [
        ("highest", "bfloat16", "xla"),
        ("high", "float32", "xla"),
        ("highest", "float32", "splash"),
        ("default", "bfloat16", "splash"),
    ]:
        with jax.default_matmul_precision(precision):
            assert attention_lib.choose_attention(shape, jnp.dtype(dtype)) == wanted


@pytest.mark.parametrize("implementation", ["splash", "cudnn"])
def test_a_kernel_that_the_devices_lack_is_refused_in_one_line(implementation):
    config = dataclasses.replace(TINY["dit"], attention=implementation)
    match = f"config.model.attention='{implementation}' needs an? .*runs on cpu: use \"auto\""
    with pytest.raises(UserError, match=match):
        attention_lib.check_attention(config, create_mesh(ONE_DEVICE, jax.devices()[:1]))


def test_a_model_with_cudnn_attention_is_refused_without_a_gpu():
    with pytest.raises(UserError, match="config.model.attention='cudnn' needs an NVIDIA GPU"):
        loss_of("dit", attention="cudnn")


# cuDNN


@pytest.fixture
def cudnn_without_a_gpu(monkeypatch):
    monkeypatch.setattr(cudnn_rules, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(cudnn_rules, "check_compute_capability", lambda capability: False)
    monkeypatch.setattr(cudnn_rules, "is_cuda_compute_capability_equal", lambda capability: False)


@pytest.mark.parametrize("tokens", [64, 256, 333, 4250])
@pytest.mark.parametrize("head_dim", [64, 72])
def test_cudnn_gets_whole_tiles_and_the_number_of_tokens(tokens, head_dim, cudnn_without_a_gpu):
    arrays = inputs(tokens, head_dim, "bfloat16")[:3]

    def loss(*arrays):
        return attention_lib.cudnn(*arrays).astype(jnp.float32).sum()

    traced = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(*arrays)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @(__cudnn\$fmha\w+)\(.*", text)
    assert calls == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    length = padded(tokens, 128)
    mask = "NO_MASK" if length == tokens else "PADDING"
    assert set(re.findall(r"mask_type\\22: \\22(\w+)", text)) == {mask}
    assert f"tensor<1x{length}x2x{head_dim}xbf16>" in text


def test_cudnn_with_padding_has_the_values_and_gradients_of_xla(monkeypatch):
    def with_xla(*arrays, implementation, **options):
        assert implementation == "cudnn"
        return original(*arrays, implementation="xla", **options)

    arrays = inputs(77, 8, "float32", batch=2)
    wanted = values_and_gradients(xla, *arrays)
    original = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", with_xla)
    assert max(error(values_and_gradients(attention_lib.cudnn, *arrays), wanted)) < 5e-6


def test_what_we_give_to_cudnn_passes_the_rules_of_jax(monkeypatch, cudnn_without_a_gpu):
    monkeypatch.setattr(attention_lib, "_is_ampere_or_later", lambda: True)
    accepted = []
    for head_dim in range(1, 300):
        if attention_lib.why_not("cudnn", jnp.dtype("bfloat16"), head_dim) is None:
            arrays = [jax.ShapeDtypeStruct((2, 256, 3, head_dim), jnp.bfloat16)] * 3
            cudnn_rules.check_is_flash_attention(*arrays, 0, 91_000, False, True)
            accepted.append(head_dim)
    assert accepted == list(range(8, 129, 8))
    assert "needs bfloat16" in attention_lib.why_not("cudnn", jnp.dtype("float32"), 64)


@pytest.mark.libtpu
def test_sd3_at_1024_pixels_needs_less_memory_and_traffic_on_tpus(tmp_path):
    found = {}
    for implementation in ("auto", "xla"):
        out = tmp_path / f"{implementation}.json"
        code, _, stderr = run_entry(
            "aot", "--config=configs/sd3_coco.py", "--topology=v5e:8x8", "--config.mesh.data=1",
            "--config.mesh.fsdp=-1", f"--config.model.attention={implementation}", f"--json={out}",
        )  # fmt: skip
        assert code == 0, stderr
        found[implementation] = json.loads(out.read_text())
    assert found["auto"]["peak"] < 2 * 2**30 < 4 * 2**30 < found["xla"]["peak"]
    assert found["auto"]["traffic"] < found["xla"]["traffic"] / 3
    assert max(found["auto"]["bounds"].values()) < max(found["xla"]["bounds"].values())
