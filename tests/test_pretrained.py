"""Published weights, converted by tp_jax.convert, give the outputs of the public torch code.

tests/golden/README.md names that code. Both sides generate the same random weights from a seed.
"""

import functools
import re

import jax
import numpy as np
import pytest
from etils import epath
from golden.seeded import seeded_images
from published_weights import convert, golden, torch_state
from safetensors.numpy import save_file

from tp_jax.messages.errors import UserError
from tp_jax.models import DiTConfig, build_model
from tp_jax.models.autoencoder import (
    AutoencoderConfig,
    from_latents,
    sample_posterior,
    tiled_decode,
    tiled_encode,
    to_latents,
)
from tp_jax.models.parameters import abstract_params
from tp_jax.pretrained import load_autoencoder, load_inception, read_description
from tp_jax.pretrained.autoencoder import convert_autoencoder
from tp_jax.pretrained.dit import infer_dit, read_dit
from tp_jax.pretrained.inception import convert_inception
from tp_jax.thinking import ThinkingConfig
from tp_jax.workdir.checkpoints import load_base

NO_THINKING = ThinkingConfig(layers=())
# Relative to the largest value; torch's own rounding error is about a tenth of this.
TOLERANCE = 1e-5


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def assert_matches(ours, theirs, name=""):
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{name}: relative error {error:.1e}")
    assert error < TOLERANCE


def runner(loaded, method):
    """Return a jitted function that applies a method of a loaded autoencoder."""
    return jax.jit(lambda x: loaded.model.apply({"params": loaded.params}, x, method=method))


# The networks.


@pytest.mark.parametrize(
    "name", ["vae4", "vae16", "vae_original", pytest.param("vae_real", marks=pytest.mark.slow)]
)
def test_autoencoder_equals_torch(name, converted):
    arrays, loaded = golden(name), load_autoencoder(converted(name))
    mean, std = runner(loaded, "encode")(channels_last(arrays["x"]))
    assert_matches(mean, channels_last(arrays["mean"]), "mean")
    assert_matches(std, channels_last(arrays["std"]), "std")
    images = runner(loaded, "decode")(channels_last(arrays["z"]))
    assert_matches(images, channels_last(arrays["decoded"]), "decoded")


def test_tiled_autoencoder_equals_torch(converted):
    arrays, loaded = golden("vae4"), load_autoencoder(converted("vae4"))
    sizes = dict(factor=loaded.config.factor, tile=int(arrays["tile"]))
    x, z = channels_last(arrays["x_tiled"]), channels_last(arrays["z_tiled"])
    mean, std = tiled_encode(runner(loaded, "moments"), x, **sizes)
    assert_matches(mean, channels_last(arrays["mean_tiled"]), "mean")
    assert_matches(std, channels_last(arrays["std_tiled"]), "std")
    images = tiled_decode(runner(loaded, "decode"), z, **sizes)
    assert_matches(images, channels_last(arrays["decoded_tiled"]), "decoded")


def test_autoencoder_in_bfloat16_is_close_to_torch(converted):
    arrays, loaded = golden("vae4"), load_autoencoder(converted("vae4"), "bfloat16")
    mean, _ = runner(loaded, "encode")(channels_last(arrays["x"]))
    theirs = channels_last(arrays["mean"])
    assert mean.dtype == np.float32
    assert 1e-4 < np.abs(mean - theirs).max() / np.abs(theirs).max() < 3e-2


def test_inception_equals_torch(converted):
    arrays, (model, params) = golden("inception"), load_inception(converted("inception"))
    images = channels_last(seeded_images(int(arrays["x_seed"]), 2, 299, 23))
    features = jax.jit(model.apply)({"params": params}, images)
    for name, ours in features._asdict().items():
        # The comparison means something only if the features of the two images differ.
        assert arrays[name].std(axis=0).mean() > 0.01 * arrays[name].std()
        assert_matches(ours, arrays[name], name)


@pytest.mark.parametrize("name", ["dit", "dit_s2"])
def test_dit_equals_torch(name, converted):
    arrays, folder = golden(name), converted(name)
    fields = dict(read_description(epath.Path(folder), "dit").config)
    assert fields.pop("learned_sigma")
    model = build_model(DiTConfig(**fields, thinking=NO_THINKING))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        abstract_params(model)["base"],
    )
    base = load_base(str(folder), wanted)
    if name == "dit":
        x = arrays["x"]
    else:
        x = np.random.RandomState(int(arrays["x_seed"])).randn(1, 4, 32, 32).astype(np.float32)
    inputs = channels_last(x), arrays["t"], {"label": arrays["y"]}
    output, _ = jax.jit(model.apply)({"params": {"base": base}}, *inputs)
    assert_matches(output, channels_last(arrays["out"]))


# Latents.


def test_latent_scaling_is_inverted_exactly():
    config = AutoencoderConfig(scale=1.5305, shift=0.0609)
    z = np.linspace(-3, 3, 7, dtype=np.float32)
    np.testing.assert_allclose(to_latents(config, z)[-1], (3 - 0.0609) * 1.5305, rtol=1e-6)
    np.testing.assert_allclose(from_latents(config, to_latents(config, z)), z, atol=1e-6)
    np.testing.assert_array_equal(sample_posterior(z, 2.0, np.ones(7)), z + 2)
    assert config.factor == 8


def test_invalid_tile_and_image_sizes_are_refused():
    images = np.zeros((1, 48, 44, 3), np.float32)
    with pytest.raises(UserError, match="tile=48: must be a multiple of 32"):
        tiled_encode(None, images, 8, tile=48)
    with pytest.raises(UserError, match="tile=0: must be a multiple of 32"):
        tiled_decode(None, images, 8, tile=0)
    with pytest.raises(UserError, match="48×44 pixels: .* multiples of 8"):
        tiled_encode(None, images, 8, tile=32)


def test_an_image_no_larger_than_a_tile_is_decoded_whole():
    z = np.ones((1, 4, 4, 3), np.float32)
    assert tiled_decode(lambda z: z, z, 8, tile=32) is z


# Layouts.

# Patterns of diffusers' names and the original names, applied in this order.
TO_ORIGINAL = (
    (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"up_blocks\.0\.resnets\.(\d)", r"up.2.block.\1"),
    (r"up_blocks\.1\.resnets\.(\d)", r"up.1.block.\1"),
    (r"up_blocks\.2\.resnets\.(\d)", r"up.0.block.\1"),
    (r"up_blocks\.0\.upsamplers\.0", "up.2.upsample"),
    (r"up_blocks\.1\.upsamplers\.0", "up.1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)
TO_OLD = (
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.0\.", ".proj_attn."),
)


def renamed(state, table, prefix=""):
    """Rename the weights by a table of (pattern, replacement) and add a prefix."""

    def name(key):
        for pattern, replacement in table:
            key = re.sub(pattern, replacement, key)
        return prefix + key

    return {name(key): array for key, array in state.items()}


def original(state, prefix=""):
    """Return the weights in the original layout, where attention uses 1×1 convolutions."""
    state = renamed(state, TO_ORIGINAL, prefix)
    return {
        key: array[..., None, None] if "attn_1" in key and array.ndim == 2 else array
        for key, array in state.items()
    }


DIFFUSION_WEIGHT = {"model.diffusion_model.out.weight": np.zeros((2, 2), np.float32)}
LOSS_WEIGHTS = {"loss.logvar": np.zeros(1, np.float32), "model_ema.decay": np.zeros(1, np.float32)}


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: renamed(state, TO_OLD),
        original,
        lambda state: original(state) | LOSS_WEIGHTS,
        lambda state: original(state, "first_stage_model.") | DIFFUSION_WEIGHT,
    ],
    ids=["old", "original", "with loss", "full checkpoint"],
)
def test_every_layout_converts_to_the_same_weights(layout, converted, tmp_path):
    state = layout(torch_state("vae4"))
    assert state.keys() != torch_state("vae4").keys()
    convert(tmp_path, state, "sd-vae")
    found = read_description(epath.Path(tmp_path / "out"), "sd-vae")
    assert found == read_description(epath.Path(converted("vae4")), "sd-vae")


# Every weight is used exactly once.


# The size of the DiT is inferred from these: with another shape, the error names other weights.
SIZE_WEIGHTS = ("pos_embed", "blocks.0.mlp.fc1.bias", "final_layer.linear.bias")


def convert_dit(state):
    return read_dit(state, infer_dit(state, heads=4))


# {golden file: (function that reads the weights, test every n-th weight)}.
CONVERTERS = {
    "dit": (convert_dit, 1),
    "vae4": (convert_autoencoder, 7),
    "vae16": (convert_autoencoder, 7),
    "vae_original": (convert_autoencoder, 7),
    "inception": (convert_inception, 200),
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_missing_misshapen_or_unused_weight_is_named(name):
    state = torch_state(name)
    run, stride = CONVERTERS[name]
    weights = [key for key in state if "num_batches" not in key]
    for key in weights[::stride]:
        with pytest.raises(UserError, match=rf"lack {re.escape(key)}:"):
            run({other: array for other, array in state.items() if other != key})
        if key not in SIZE_WEIGHTS:
            with pytest.raises(UserError, match=rf"^{re.escape(key)} has shape"):
                run(state | {key: np.concatenate([state[key]] * 2, axis=-1)})
        with pytest.raises(UserError, match=rf"^{re.escape(key)} has shape"):
            run(state | {key: state[key][None]})
    with pytest.raises(UserError, match="doesn't use encoder.more.weight"):
        run(state | {"encoder.more.weight": np.zeros(1)})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("blocks.1.attn.qkv.bias"), "lack blocks.1.attn.qkv.bias"),
        (lambda s: s.update(extra=np.zeros(1)), "doesn't use extra"),
        (
            lambda s: s.update({"blocks.1.attn.qkv.bias": np.zeros(143)}),
            r"blocks.1.attn.qkv.bias has shape \[143\].*imply \[144\]",
        ),
        (lambda s: s.update(pos_embed=s["pos_embed"] * np.nan), "pos_embed is not the position"),
    ],
)
def test_convert_refuses_weights_that_do_not_fit(change, match, refused, tmp_path):
    state = dict(torch_state("dit"))
    change(state)
    source, out = tmp_path / "w.safetensors", tmp_path / "place" / "out"
    save_file(state, source)
    arguments = ["--kind=dit", "--heads=4", f"--source={source}", f"--out={out}"]
    refused("convert", *arguments, match=match)


# Sizes inferred from the weights.


def test_sizes_of_the_published_dits_are_inferred():
    for width, depth, heads in ((1152, 28, 16), (384, 12, 6), (1024, 24, 16), (768, 12, 12)):
        empty = functools.partial(np.empty, dtype=np.float16)
        state = {
            "pos_embed": empty((1, 256, width)),
            "x_embedder.proj.weight": empty((width, 4, 2, 2)),
            "final_layer.linear.bias": empty(32),
            "y_embedder.embedding_table.weight": empty((1001, width)),
            "blocks.0.mlp.fc1.bias": empty(4 * width),
            f"blocks.{depth - 1}.mlp.fc1.bias": empty(4 * width),
        }
        config = infer_dit(state)
        assert (config.width, config.depth, config.heads) == (width, depth, heads)
        assert (config.image_size, config.out_channels, config.num_classes) == (32, 8, 1000)
    state["final_layer.linear.bias"] = empty(16)
    assert infer_dit(state).out_channels == 4
    for change, match in (
        ({"pos_embed": empty((1, 256, 700))}, "width 700.*give --heads"),
        ({"pos_embed": empty((1, 255, 768))}, "pos_embed has 255 positions"),
        ({"final_layer.linear.bias": empty(20)}, "20 outputs.*has 16, or twice"),
    ):
        with pytest.raises(UserError, match=match):
            infer_dit(state | change)


def test_loading_a_dit_of_another_size_is_refused(converted):
    size = dict(image_size=8, depth=3, width=64, heads=4, num_classes=10)
    model = build_model(DiTConfig(**size, thinking=NO_THINKING))
    with pytest.raises(UserError, match="doesn't fit config.model: .*has shape.*the model expects"):
        load_base(str(converted("dit")), abstract_params(model)["base"])


def test_unknown_autoencoder_sizes_are_refused():
    state = torch_state("vae4")
    with pytest.raises(UserError, match="has 8 latent channels: .* have 4 or 16"):
        convert_autoencoder(state | {"decoder.conv_in.weight": np.zeros((64, 8, 3, 3))})
    with pytest.raises(UserError, match="must be a multiple of norm_groups=32"):
        AutoencoderConfig(block_widths=(32, 48))
