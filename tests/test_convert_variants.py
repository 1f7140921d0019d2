"""What people bring to convert: wrapped and nested weights, config.json, scales, label tables."""

import json
import re

import jax
import numpy as np
import pytest
from etils import epath
from published_weights import golden, torch_state
from safetensors.numpy import save_file

from tp_jax.messages.errors import UserError
from tp_jax.pretrained.autoencoder import LatentScale, convert_autoencoder, latent_scale
from tp_jax.pretrained.convert import Conversion, convert
from tp_jax.pretrained.dit import infer_dit, read_dit
from tp_jax.pretrained.files import find_file, load_state_dict
from tp_jax.pretrained.inception import convert_inception
from tp_jax.pretrained.nested import find_weights
from tp_jax.pretrained.published_config import PublishedConfig, read_published_config
from tp_jax.pretrained.recognise import find_prefix, looks_like, without_wrappers
from tp_jax.pretrained.sd3 import infer_sd3, read_sd3

# Wrapped weights

PREFIXES = (
    "module.", "_orig_mod.", "model.", "net.", "ema_model.", "module._orig_mod.",
    "_orig_mod.module.", "model.net.", "ema_model.module._orig_mod.", "anything.",
)  # fmt: skip


def read(kind, state):
    """Convert a state dict in memory, with four heads if it is a transformer."""
    if kind == "dit":
        return read_dit(state, infer_dit(state, heads=4))
    if kind == "sd3":
        return read_sd3(state, infer_sd3(state, heads=4))
    return convert_autoencoder(state)[1] if kind == "sd-vae" else convert_inception(state)


def prefixed(state, prefix):
    return {prefix + key: array for key, array in state.items()}


@pytest.mark.parametrize(
    ("kind", "name", "prefixes"),
    [
        ("dit", "dit", PREFIXES),
        ("sd3", "sd3", PREFIXES[:4]),
        ("sd-vae", "vae_original", PREFIXES[:4]),
        ("inception", "inception", PREFIXES[:1]),
    ],
)
def test_prefixes_of_wrappers_are_recognised(kind, name, prefixes):
    state = torch_state(name)
    wanted = read(kind, state)
    for prefix in prefixes:
        found = read(kind, prefixed(state, prefix))
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_moving_average_is_read_of_weights_that_are_there_twice():
    state = torch_state("dit")
    other = {key: array + 1 for key, array in state.items()}
    for average, model in (("ema_model.", "online_model."), ("ema.", ""), ("x.ema.", "x.model.")):
        found = read("dit", prefixed(other, model) | prefixed(state, average))
        jax.tree.map(np.testing.assert_array_equal, found, read("dit", state))
    with pytest.raises(UserError, match=r"there 2 times, under student\., teacher\.: give a file"):
        find_prefix(prefixed(state, "student.") | prefixed(state, "teacher."), ["pos_embed"])


def test_half_of_the_weights_under_a_prefix_are_not_enough():
    state = torch_state("dit")
    mixed = {("" if "blocks.2" in key else "module.") + key: a for key, a in state.items()}
    with pytest.raises(UserError, match=r"blocks\.2\..* doesn't start with 'module.' as the other"):
        read("dit", mixed)


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
def test_wrappers_of_single_blocks_are_recognised(wrapper, tmp_path):
    state = torch_state("dit")
    wrapped = {re.sub(r"blocks\.\d+\.", rf"\g<0>{wrapper}.", key): a for key, a in state.items()}
    assert wrapped.keys() != state.keys()
    for found in (wrapped, prefixed(wrapped, f"{wrapper}.")):
        assert without_wrappers(found) == state
    with pytest.raises(UserError, match=rf"^{wrapper}\.x\.b and x\.b are the same weight: give"):
        without_wrappers({"x.b": 0, f"{wrapper}.x.b": 1})
    save_file({k: np.ascontiguousarray(a) for k, a in wrapped.items()}, tmp_path / "w.safetensors")
    source, out = epath.Path(tmp_path / "w.safetensors"), epath.Path(tmp_path / "out")
    convert(Conversion("dit", source, out, heads=4))
    assert (out / "description.json").exists()


WEIGHTS = {"a.b": np.ones(2), "a.c": np.zeros((2, 3))}
AVERAGE = [np.full(2, 5.0), np.full((2, 3), 5.0)]


@pytest.mark.parametrize(
    ("content", "first", "where"),
    [
        (WEIGHTS, 1, ""),
        ({"model": WEIGHTS, "ema": {}}, 1, "ema is empty"),
        ({"model": WEIGHTS, "ema": []}, 1, "ema is empty"),
        ({"model": WEIGHTS, "ema": None, "step": 3}, 1, "under model"),
        ({"model": WEIGHTS, "ema": {"a.b": AVERAGE[0]}}, 5, "under ema"),
        ({"model_state_dict": WEIGHTS, "optimizer": {"state": {0: {"x": AVERAGE[0]}}}}, 1, "under"),
        ({"state_dict": {"model": WEIGHTS}}, 1, "under state_dict.model"),
        ({"params": WEIGHTS, "params_ema": {"a.b": AVERAGE[0]}}, 5, "under params_ema"),
        ({"model": WEIGHTS, "ema": AVERAGE}, 5, "under ema"),
        ({"model": WEIGHTS, "ema": {"decay": 0.9, "shadow_params": AVERAGE}}, 5, "under ema"),
        ({"ema": {"module": {"a.b": AVERAGE[0]}}, "model": WEIGHTS}, 5, "under ema.module"),
        (WEIGHTS | {"epoch": 3}, 1, ""),
    ],
)
def test_weights_are_found_in_checkpoints_of_training_scripts(content, first, where):
    notes = []
    found = find_weights(content, lambda x: isinstance(x, np.ndarray), "F", notes.append)
    assert found["a.b"][0] == first
    assert where in " ".join(notes) and bool(notes) == bool(where)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"epoch": 3, "args": None}, "F contains no state dict: it has epoch, args; give"),
        ({}, "it has no entries"),
        ([np.ones(2)], "F contains no state dict; give a file of weights"),
        ({"ema": AVERAGE}, "F: ema is a list of 2 arrays without names"),
        ({"ema": AVERAGE[:1], "model": WEIGHTS}, "ema is a list of 1 arrays without names"),
    ],
)
def test_checkpoints_without_weights_say_what_they_hold(content, match):
    with pytest.raises(UserError, match=match):
        find_weights(content, lambda x: isinstance(x, np.ndarray), "F", print)


@pytest.mark.parametrize(
    ("name", "kind", "seen"),
    [
        ("joint_blocks.0.x_block.attn.qkv.weight", "dit", "Stable Diffusion 3: --kind=sd3"),
        ("transformer_blocks.0.norm1_context.linear.weight", "dit", "--kind=sd3"),
        ("module.blocks.0.adaLN_modulation.1.weight", "sd3", "a DiT: --kind=dit"),
        ("decoder.conv_in.weight", "dit", "an autoencoder of Stable Diffusion: --kind=sd-vae"),
        ("Conv2d_1a_3x3.conv.weight", "sd-vae", "an Inception: --kind=inception"),
        ("down_blocks.0.attentions.0.proj_in.weight", "sd3", "a U-Net .*: no --kind converts it"),
        ("model.diffusion_model.input_blocks.0.0.weight", "sd3", "a U-Net of Stable Diffusion"),
        ("double_blocks.0.img_attn.qkv.weight", "sd3", "FLUX: no --kind converts it"),
        ("adaln_single.linear.weight", "dit", "PixArt: no"),
        ("blocks.0.attn.qkv.lora_A.weight", "dit", "a LoRA: merge it into its base first"),
        ("lora_unet_blocks_0.lora_up.weight", "sd3", "a LoRA"),
        ("text_model.encoder.layers.0.mlp.fc1.bias", "sd3", "a text encoder: .*config.text.path"),
        ("some.weight", "dit", "the file has some.weight"),
    ],
)
def test_weights_of_another_kind_are_recognised(name, kind, seen):
    assert re.search(seen, looks_like([name], kind))
    assert looks_like(["blocks.0.adaLN_modulation.1.weight"], "dit") == ""


def test_convert_says_what_weights_of_another_kind_look_like(refused, tmp_path):
    path = tmp_path / "vae.safetensors"
    save_file({key: np.ascontiguousarray(a) for key, a in torch_state("vae16").items()}, path)
    flags = ["--kind=dit", f"--source={path}", f"--out={tmp_path / 'place' / 'out'}"]
    refused("convert", *flags, match=r"vae.safetensors: the torch weights lack .*--kind=sd-vae\)")


# diffusers' layout of a DiT

TO_DIFFUSERS = (
    (r"^x_embedder\.proj", "pos_embed.proj"),
    (r"^blocks\.(\d+)\.adaLN_modulation\.1", r"transformer_blocks.\1.norm1.linear"),
    (r"^blocks\.(\d+)\.attn\.proj", r"transformer_blocks.\1.attn1.to_out.0"),
    (r"^blocks\.(\d+)\.mlp\.fc1", r"transformer_blocks.\1.ff.net.0.proj"),
    (r"^blocks\.(\d+)\.mlp\.fc2", r"transformer_blocks.\1.ff.net.2"),
    (r"^final_layer\.adaLN_modulation\.1", "proj_out_1"),
    (r"^final_layer\.linear", "proj_out_2"),
)
EMBEDDINGS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
DIT_CONFIG = {"_class_name": "DiTTransformer2DModel", "sample_size": 8, "num_attention_heads": 4,
              "attention_head_dim": 12, "num_layers": 3, "in_channels": 4, "out_channels": 8,
              "num_embeds_ada_norm": 10, "patch_size": 2, "norm_type": "ada_norm_zero"}  # fmt: skip


def diffusers_dit():
    """Return the golden DiT in diffusers' layout, without a position table."""
    state = {}
    for key, array in torch_state("dit").items():
        stem, _, end = key.rpartition(".")
        if "attn.qkv" in key:
            layer = key.split(".")[1]
            for name, part in zip("qkv", np.split(array, 3), strict=True):
                state[f"transformer_blocks.{layer}.attn1.to_{name}.{end}"] = part
        elif stem in EMBEDDINGS:
            for layer in range(3):
                name = f"transformer_blocks.{layer}.norm1.emb.{EMBEDDINGS[stem]}.{end}"
                state[name] = array.copy()
        elif key != "pos_embed":
            for pattern, replacement in TO_DIFFUSERS:
                key = re.sub(pattern, replacement, key)
            state[key] = array
    return state


def test_the_layout_of_diffusers_gives_the_same_dit():
    state, published = diffusers_dit(), PublishedConfig("config.json", DIT_CONFIG)
    config = infer_dit(state, published=published)
    assert config == infer_dit(torch_state("dit"), heads=4)
    wanted = read("dit", torch_state("dit"))
    jax.tree.map(np.testing.assert_array_equal, read_dit(state, config), wanted)
    table = {"pos_embed.pos_embed": torch_state("dit")["pos_embed"]}
    jax.tree.map(np.testing.assert_array_equal, read("dit", state | table), wanted)
    with pytest.raises(UserError, match="the image size isn't known.*give the folder"):
        infer_dit(state, heads=4)
    key = "transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"
    with pytest.raises(UserError, match=f"{re.escape(key)} differs from"):
        read_dit(state | {key: state[key] + 1}, config)
    for key in list(state)[::5]:
        with pytest.raises(UserError, match=re.escape(key)):
            rest = {name: array for name, array in state.items() if name != key}
            read_dit(rest, infer_dit(rest, published=published))


# config.json

VAE_CONFIG = {
    "_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [32, 64, 64],
    "layers_per_block": 1, "in_channels": 3, "out_channels": 3, "act_fn": "silu",
    "scaling_factor": 0.13025, "shift_factor": None, "latents_mean": None, "norm_num_groups": 32,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
    "use_quant_conv": True, "mid_block_add_attention": True, "force_upcast": True,
}  # fmt: skip


def vae(channels="vae4", *, given=LatentScale(), **changes):
    published = PublishedConfig("config.json", VAE_CONFIG | changes)
    return convert_autoencoder(torch_state(channels), published, given)[0]


def test_scale_and_shift_are_those_of_config_json():
    found = vae()
    assert (found.scale, found.shift) == (0.13025, 0)
    found = vae("vae16", latent_channels=16, block_out_channels=[32, 32, 64], layers_per_block=2,
                use_quant_conv=False, use_post_quant_conv=False,
                scaling_factor=0.3611, shift_factor=0.1159)  # fmt: skip
    assert (found.scale, found.shift) == (0.3611, 0.1159)
    assert vae(norm_num_groups=16).norm_groups == 16
    assert vae(scaling_factor=1).scale == 1
    assert vae(scaling_factor=None, given=LatentScale(0.7, 0.1)).scale == 0.7
    assert vae(given=LatentScale(0.13025)).scale == 0.13025


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"latent_channels": 16}, "latent_channels=16, but the weights imply 4"),
        ({"block_out_channels": [32, 64]}, r"block_out_channels=\[32, 64\], but the weights imply"),
        ({"layers_per_block": 3}, "layers_per_block=3, but the weights imply 1"),
        ({"use_quant_conv": False}, "use_quant_conv=false, but the weights imply true"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention=false isn't supported"),
        ({"act_fn": "relu"}, 'act_fn="relu" isn\'t supported, only "silu"'),
        ({"latents_mean": [0.0] * 4}, "latents_mean gives a value for every latent channel"),
        ({"latents_std": [1.0] * 4}, "latents_std gives a value for every"),
        ({"scaling_factor": float("nan")}, "scaling_factor=nan: must be 1e-06 to"),
        ({"scaling_factor": -1.0}, "scaling_factor=-1.0: must be 1e-06 to"),
        ({"scaling_factor": 1e300}, "scaling_factor=1e.300: must be 1e-06 to"),
        ({"shift_factor": float("inf")}, "shift_factor=inf: must be -1e.06 to 1e.06"),
        ({"scaling_factor": "big"}, 'scaling_factor="big" isn\'t a number'),
        ({"given": LatentScale(0.18215)}, "--scale=0.18215, but config.json says 0.13025"),
        ({"given": LatentScale(None, 0.5)}, "--shift=0.5, but config.json says 0.0"),
        ({"norm_num_groups": 24}, "must be a multiple of norm_groups=24"),
        ({"in_channels": 4}, "in_channels=4, but the weights imply 3"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 3}, "down_block_types=.* supported"),
    ],
)
def test_a_config_json_that_contradicts_the_weights_is_refused(changes, match):
    with pytest.raises(UserError, match=match):
        vae(**changes)


def test_bad_scales_are_refused():
    for scale, shift in ((0, None), (-1, 0), (float("nan"), 0), (1, float("inf")), (1e300, 0)):
        with pytest.raises(UserError, match="--scale=|--shift="):
            LatentScale(scale, shift)


@pytest.mark.parametrize(
    ("channels", "beside", "scale", "owner"),
    [
        (4, "other", 0.18215, "Stable Diffusion 1 and 2, from its 4 channels, which doesn't"),
        (16, "other", 1.5305, "Stable Diffusion 3, from its 16"),
        (4, "cond_stage_model.x", 0.18215, "Stable Diffusion 1 and 2, from what else is"),
        (4, "conditioner.embedders.0.x", 0.13025, "Stable Diffusion XL, from what else"),
        (16, "model.diffusion_model.joint_blocks.0.x", 1.5305, "Stable Diffusion 3, from what"),
        (16, "model.diffusion_model.double_blocks.0.x", 0.3611, "FLUX, from what else"),
    ],
)
def test_an_assumed_scale_is_said(channels, beside, scale, owner):
    found, _, note = latent_scale({beside: 0}, channels, PublishedConfig(), LatentScale())
    assert found == scale and owner in note and "set them with --scale and --shift" in note
    assert latent_scale({}, 8, PublishedConfig(), LatentScale(0.5)) == (0.5, 0, "")


def test_convert_carries_the_scale_into_the_folder(tmp_path, capsys):
    folder, state = epath.Path(tmp_path / "vae"), torch_state("vae16")
    folder.mkdir()
    path = folder / "w.safetensors"
    save_file({key: np.ascontiguousarray(array) for key, array in state.items()}, path)
    fields = {"_class_name": "AutoencoderKL", "scaling_factor": 0.3611, "shift_factor": 0.1159}
    (folder / "config.json").write_text(json.dumps(fields))
    convert(Conversion("sd-vae", epath.Path(tmp_path), epath.Path(tmp_path / "out")))
    config = json.loads((tmp_path / "out" / "description.json").read_text())["config"]
    assert (config["scale"], config["shift"]) == (0.3611, 0.1159)
    assert "(z - 0.1159)·0.3611" in capsys.readouterr().err
    for change, match in (
        (
            {"_class_name": "AutoencoderTiny"},
            "describes the class AutoencoderTiny, not AutoencoderKL: g",
        ),
        ({"_class_name": "SD3Transformer2DModel"}, "--kind=sd3 converts it"),
        ({"scaling_factor": 1.5305}, None),
    ):
        (folder / "config.json").write_text(json.dumps(fields | change))
        flags = Conversion("sd-vae", path, epath.Path(tmp_path / "x"), scale=0.3611)
        with pytest.raises(UserError, match=match or "--scale=0.3611, but .* says 1.5305"):
            convert(flags)
    (folder / "config.json").write_text('{"model_type": "t5", "latent_channels": 99}')
    assert read_published_config(path, ("AutoencoderKL",)) == PublishedConfig()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 2), ("attention_head_dim", 64),
        ("joint_attention_dim", 9), ("pooled_projection_dim", 9), ("pos_embed_max_size", 192),
        ("sample_size", 128), ("patch_size", 4), ("in_channels", 9), ("out_channels", 9),
        ("caption_projection_dim", 9), ("dual_attention_layers", [0]), ("qk_norm", None),
        ("qk_norm", "layer_norm"),
    ],
)  # fmt: skip
def test_a_config_json_that_contradicts_an_sd3_is_refused(field, value):
    state, theirs = torch_state("sd35"), json.loads(str(golden("sd35")["config"]))
    assert infer_sd3(state, None, PublishedConfig("c", theirs)) == infer_sd3(state)
    with pytest.raises(UserError, match=f"c: {field}="):
        infer_sd3(state, None, PublishedConfig("c", {field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_layers", 28), ("attention_head_dim", 72),
        ("sample_size", 32), ("num_embeds_ada_norm", 1000), ("in_channels", 3),
        ("out_channels", 4), ("patch_size", 4), ("activation_fn", "gelu"),
        ("norm_type", "ada_norm"), ("attention_bias", False), ("norm_elementwise_affine", True),
    ],
)  # fmt: skip
def test_a_config_json_that_contradicts_a_dit_is_refused(field, value):
    state = torch_state("dit")
    infer_dit(state, None, PublishedConfig("c", DIT_CONFIG))
    with pytest.raises(UserError, match=f"c: {field}="):
        infer_dit(state, 4, PublishedConfig("c", {field: value}))


def test_heads_are_those_of_config_json_and_the_flag_must_not_contradict():
    eight = PublishedConfig("c", {"num_attention_heads": 8})
    assert infer_dit(torch_state("dit"), None, eight).heads == 8
    assert infer_sd3(torch_state("sd3"), None, eight).heads == 8
    for infer, name in ((infer_dit, "dit"), (infer_sd3, "sd3")):
        with pytest.raises(UserError, match="--heads=4, but c says num_attention_heads=8: leave"):
            infer(torch_state(name), 4, eight)
        with pytest.raises(UserError, match='c: num_attention_heads="8" isn.t a number'):
            infer(torch_state(name), None, PublishedConfig("c", {"num_attention_heads": "8"}))


def test_shards_of_torch_files_are_read(tmp_path, monkeypatch):
    """Of .bin files, where a folder has no .safetensors; the files themselves need torch."""
    state = torch_state("dit")
    names = sorted(state)
    parts = {f"m-0000{i}-of-00002.bin": {k: state[k] for k in names[i - 1 :: 2]} for i in (1, 2)}
    for name in parts:
        (tmp_path / name).write_bytes(b"x")
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (tmp_path / "m.bin.index.json").write_text(json.dumps(index))
    monkeypatch.setattr("tp_jax.pretrained.files._load_torch", lambda path, note: parts[path.name])
    monkeypatch.setattr("tp_jax.pretrained.files.check_download", lambda path: None)
    file = find_file(epath.Path(tmp_path))
    assert file.name == "m.bin.index.json"
    found = load_state_dict(file)
    assert found.keys() == state.keys() and all(found[key] is state[key] for key in state)
    with pytest.raises(UserError, match="is one of several shards: give the folder or the index"):
        find_file(epath.Path(tmp_path) / "m-00001-of-00002.bin")
    (tmp_path / "w.safetensors").write_bytes(b"x")
    assert find_file(epath.Path(tmp_path)).name == "w.safetensors"
