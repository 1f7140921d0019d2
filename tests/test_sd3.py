"""Published weights of SD3: layouts, shards, sizes, memory use, and loading onto a mesh."""

import dataclasses
import functools
import json
import re
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import run_entry
from etils import epath
from golden.seeded import seeded_weights
from published_weights import convert, golden, torch_state
from safetensors.numpy import load_file, save_file

from tp_jax.messages.errors import UserError
from tp_jax.models import MMDiTConfig, build_model
from tp_jax.models.layers import position_embedding
from tp_jax.models.mmdit import grid_positions
from tp_jax.models.mmdit_config import SIZES
from tp_jax.models.parameters import abstract_params
from tp_jax.parallel.axes import ONE_DEVICE
from tp_jax.parallel.mesh import create_mesh
from tp_jax.parallel.sharding import path_name, tree_shardings, with_shardings
from tp_jax.pretrained import convert as convert_lib
from tp_jax.pretrained import infer_sd3, read_description, read_sd3
from tp_jax.thinking import ThinkingConfig
from tp_jax.workdir.checkpoints import load_base

NO_THINKING = ThinkingConfig(layers=())


@functools.cache
def original_state():
    """Return the seeded random weights of sd3_original.npz, in the original layout."""
    arrays = golden("sd3_original")
    state = seeded_weights(
        json.loads(str(arrays["shapes"])), int(arrays["seed"]), float(arrays["gain"])
    )
    side = np.arange(12) * (4 / 12)
    return state | {"pos_embed": position_embedding(32, side, side)[None]}


def prefixed(state):
    """Return a full checkpoint, which also holds an autoencoder and text encoders."""
    state = {f"model.diffusion_model.{key}": array for key, array in state.items()}
    vae = {f"first_stage_model.{key}": a for key, a in torch_state("vae_original").items()}
    text = {"text_encoders.clip_l.transformer.text_model.x.weight": np.zeros((2, 2), np.float32)}
    return state | vae | text | {"model_sampling.sigmas": np.zeros(3, np.float32)}


def load(folder, mesh=None, **changes):
    """Load the model of a converted folder and its base, on one device or on a mesh.

    Returns:
      The model, the base parameters, and their abstract values with shardings.
    """
    fields = read_description(epath.Path(folder), "sd3").config | changes
    size = dict(image_size=fields["patch"] * fields["base_grid"])
    model = build_model(MMDiTConfig(**size | fields, thinking=NO_THINKING))
    wanted = abstract_params(model)["base"]
    shardings = tree_shardings({"base": wanted}, mesh or create_mesh(ONE_DEVICE, jax.devices()[:1]))
    wanted = with_shardings(wanted, shardings["base"])
    return model, load_base(str(folder), wanted, {"image_size": 8} | fields), wanted


def assert_output(model, base, arrays, suffix=""):
    condition = {"text": arrays["encoder_hidden_states"], "pooled": arrays["pooled_projections"]}
    x = np.moveaxis(arrays[f"hidden_states{suffix}"], 1, -1)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(model.apply)
        out, _ = run({"params": {"base": base}}, x, arrays["timestep"], condition)
    wanted = np.moveaxis(arrays[f"out{suffix}"], 1, -1)
    error = np.abs(out - wanted).max() / np.abs(wanted).max()
    print(f"relative error {error:.1e}")
    assert error < 1e-5


# Layouts.


@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_converted_weights_give_the_output_of_diffusers(name, converted):
    model, base, _ = load(converted(name))
    theirs = json.loads(str(golden(name)["config"]))
    assert model.config.dual_attention_layers == len(theirs["dual_attention_layers"])
    assert model.config.max_grid == theirs["pos_embed_max_size"]
    assert_output(model, base, golden(name))
    said, qk_norm = (converted(name).parent / "log").read_text(), name == "sd35"
    assert f"depth 3, width 32, heads 4, text_width 24, pooled_width 16, qk_norm {qk_norm}" in said
    assert f"--config.init.base={converted(name)}" in said


def test_a_full_checkpoint_in_the_original_layout_is_converted(tmp_path, converted):
    state = prefixed(original_state())
    convert(tmp_path, state, "sd3")
    model, base, _ = load(tmp_path / "out")
    assert_output(model, base, golden("sd3_original"))
    bare = read_sd3(original_state(), infer_sd3(original_state()))
    jax.tree.map(np.testing.assert_array_equal, base, bare)
    convert(tmp_path / "vae", state, "sd-vae")
    found = read_description(epath.Path(tmp_path / "vae" / "out"), "sd-vae").identity
    assert found == read_description(epath.Path(converted("vae_original")), "sd-vae").identity


def test_a_missing_misshapen_or_unused_weight_is_named():
    def run(state):
        return read_sd3(state, infer_sd3(state))

    state = original_state()
    for key in list(state)[::3]:
        with pytest.raises(UserError, match=rf"lack {re.escape(key)}:"):
            run({other: array for other, array in state.items() if other != key})
        with pytest.raises(UserError, match=rf"^{re.escape(key)} has shape"):
            run(state | {key: state[key][None]})
    with pytest.raises(UserError, match=r"doesn't use joint_blocks.2.context_block.mlp.fc1.bias"):
        run(state | {"joint_blocks.2.context_block.mlp.fc1.bias": np.zeros(128)})
    with pytest.raises(UserError, match="lack model.diffusion_model.x_embedder.proj.weight"):
        run({"model.diffusion_model.pos_embed": state["pos_embed"]})


# Shards.


def write_shards(folder, state, count=2):
    """Write weights in shards with an index, as diffusers does for large models."""
    folder.mkdir(parents=True)
    stem, shards, places = "diffusion_pytorch_model", [dict() for _ in range(count)], {}
    for number, key in enumerate(state):
        shard = number % count
        shards[shard][key] = np.ascontiguousarray(state[key])
        places[key] = f"{stem}-{shard + 1:05d}-of-{count:05d}.safetensors"
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors")
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def run_conversion(source, out):
    source, out = epath.Path(source), epath.Path(out)
    convert_lib.convert(convert_lib.Conversion("sd3", source, out))
    return read_description(out, "sd3").identity


def test_shards_are_read_from_the_index_or_a_folder(converted, tmp_path):
    index = write_shards(tmp_path / "repo" / "transformer", torch_state("sd35"), 3)
    (tmp_path / "repo" / "sd3.5_medium.safetensors").write_text("")
    wanted = read_description(epath.Path(converted("sd35")), "sd3").identity
    for number, source in enumerate((index, index.parent, index.parent.parent)):
        assert run_conversion(source, tmp_path / str(number)) == wanted


def test_incomplete_or_mixed_shards_are_refused(refused, tmp_path):
    index = write_shards(tmp_path / "whole", torch_state("sd35"))
    first, second = sorted(index.parent.glob("*.safetensors"))

    def check(source, match):
        flags = ["--kind=sd3", f"--source={source}", f"--out={tmp_path / 'place' / 'out'}"]
        refused("convert", *flags, match=match)

    check(first, "is one of several shards: give the folder or the index")
    other = write_shards(tmp_path / "other", torch_state("sd3"))
    sorted(other.parent.glob("*.safetensors"))[1].rename(second)
    check(index, "the shard .*00002-of-00002.safetensors (lacks|has a weight that the index)")
    second.unlink()
    check(index, "1 of 2 shards are missing, the first is .*00002-of-00002.safetensors")
    index.unlink()
    check(index.parent, "has shards but no index")
    first.rename(index.parent / "a.safetensors")
    (index.parent / "b.safetensors").write_text("")
    check(index.parent, "has a.safetensors, b.safetensors: give one")
    other.write_text("[]")
    check(other, "isn't an index of .safetensors files")
    check(tmp_path / "place", "has no .safetensors or .bin file")


@pytest.mark.parametrize("cut", [0, 4, 40, -1])
def test_a_truncated_file_is_refused(cut, refused, tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file({"a": np.ones(64, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:cut])
    flags = ["--kind=sd3", f"--source={path}", f"--out={tmp_path / 'place' / 'out'}"]
    refused("convert", *flags, match="is damaged or isn't a .safetensors file")


# Sizes.


def published_sizes(depth, width, qk_norm, dual, max_grid):
    """Return a state dict with only the weights that determine the size.

    The arrays are np.zeros, which use no memory until they are read.
    """
    empty = functools.partial(np.zeros, dtype=np.float16)
    table = empty((1, max_grid**2, width))
    positions = np.arange(max_grid) * (64 / max_grid)
    table[0, :max_grid] = position_embedding(width, np.zeros(1), positions)
    last = f"transformer_blocks.{depth - 1}.norm1.linear.bias"
    state = {
        "pos_embed.proj.weight": empty((width, 16, 2, 2)),
        "pos_embed.pos_embed": table,
        "context_embedder.weight": empty((width, 4096)),
        "time_text_embed.text_embedder.linear_1.weight": empty((width, 2048)),
        "proj_out.bias": empty(64),
        "transformer_blocks.0.norm1.linear.bias": empty(6 * width),
        last: empty(6 * width),
    }
    if qk_norm:
        state["transformer_blocks.0.attn.norm_q.weight"] = empty(64)
    if dual:
        state[f"transformer_blocks.{dual - 1}.attn2.to_out.0.weight"] = empty((width, width))
    return state


def test_sizes_of_the_published_models_are_inferred():
    for name, size in (
        ("SD3-medium", (24, 1536, False, 0, 192)),
        ("SD3.5-medium", (24, 1536, True, 13, 384)),
        ("SD3.5-large", (38, 2432, True, 0, 192)),
    ):
        config = infer_sd3(published_sizes(*size))
        assert config == MMDiTConfig(**SIZES[name], thinking=NO_THINKING), name
    state = published_sizes(24, 1500, False, 0, 192)
    with pytest.raises(UserError, match="width 1500 isn't a multiple of 64.* give --heads"):
        infer_sd3(state)
    assert infer_sd3(state, heads=25).heads == 25
    table = np.zeros((1, 1000, 1500), np.float16)
    with pytest.raises(UserError, match="pos_embed.pos_embed has 1000 positions"):
        infer_sd3(state | {"pos_embed.pos_embed": table})


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 0.5, -1.25, 32.0])
def test_a_position_table_with_an_offset_is_recognised(dtype, offset):
    side = np.arange(12) * (4 / 12) - offset
    table = position_embedding(32, side, side)[None].astype(dtype)
    state = original_state() | {"pos_embed": table}
    config = infer_sd3(state)
    assert (config.base_grid, config.grid_offset) == (4, offset)
    read_sd3(state, config)  # compares the whole table with the computed one
    wrong = dataclasses.replace(config, grid_offset=offset + 0.1)
    with pytest.raises(UserError, match="pos_embed is not the position table"):
        read_sd3(state, wrong)
    # The model embeds the centre of the table.
    positions = grid_positions(config, 6)
    np.testing.assert_allclose(
        position_embedding(32, positions, positions),
        np.float32(table).reshape(12, 12, 32)[3:9, 3:9].reshape(36, 32),
        rtol=0,
        atol=float(ml_dtypes.finfo(dtype).eps) + 1e-5,
    )


def test_a_base_with_another_offset_is_refused(tmp_path):
    side = np.arange(12) * (4 / 12) - 0.5
    state = original_state() | {"pos_embed": position_embedding(32, side, side)[None]}
    assert "grid_offset 0.5" in convert(tmp_path, state, "sd3")
    with pytest.raises(UserError, match="has grid_offset=0.5, but config.model.grid_offset=0.0"):
        load(tmp_path / "out", grid_offset=0.0)
    out = tmp_path / "diffusers"
    code, _, stderr = run_entry(
        "export", f"--workdir={tmp_path / 'out'}", f"--out={out}", "--format=diffusers"
    )
    assert code == 0, stderr
    table = load_file(next(out.glob("*.safetensors")))["pos_embed.pos_embed"]
    np.testing.assert_allclose(table, state["pos_embed"], rtol=0, atol=1e-6)


def test_weights_of_another_model_are_refused(refused, tmp_path):
    path = tmp_path / "dit.safetensors"
    save_file(torch_state("dit"), path)
    flags = ["--kind=sd3", f"--source={path}", f"--out={tmp_path / 'place' / 'out'}"]
    refused("convert", *flags, match="lack context_embedder.weight: they are incomplete, or belong")


# Loading.


def test_each_device_of_a_mesh_loads_only_its_shards(converted):
    mesh = create_mesh(ONE_DEVICE | dict(fsdp=4), jax.devices())
    model, base, wanted = load(converted("sd35"), mesh)
    leaves, _ = jax.tree_util.tree_flatten_with_path(base)
    for (path, leaf), target in zip(leaves, jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding == target.sharding, path_name(path)
        parts = {shard.data.size for shard in leaf.addressable_shards}
        # Small weights are replicated on every device.
        assert parts == {leaf.size // 4} or leaf.size < 1000, path_name(path)
    one = sum(leaf.addressable_shards[0].data.size for _, leaf in leaves)
    assert one < 0.27 * sum(leaf.size for _, leaf in leaves)
    assert_output(model, base, golden("sd35"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(width=64), "doesn't fit config.model: .*has shape .*the model expects"),
        (dict(depth=5), "doesn't fit config.model: blocks/adaln/bias is missing .and"),
        (dict(qk_norm=False), "doesn't fit config.model: .*norm_k/scale is left over"),
        (dict(dual_attention_layers=0), "doesn't fit config.model: blocks/adaln/bias is missing"),
        (dict(heads=2), "has heads=4, but config.model.heads=2"),
        (dict(max_grid=24), "has max_grid=12, but config.model.max_grid=24"),
        (dict(base_grid=6), "has base_grid=4, but config.model.base_grid=6"),
    ],
)
def test_loading_into_a_model_of_another_size_is_refused(changes, match, converted):
    with pytest.raises(UserError, match=match) as error:
        load(converted("sd35"), **changes)
    assert "\n" not in str(error.value)


def large_state(factor=8, blocks=8):
    """Return float16 zeros shaped as golden sd3, but `factor` times wider and with more blocks."""
    times = "time_text_embed.timestep_embedder.linear_1.weight"
    state, sources = {}, [0, *[1] * (blocks - 2), 2]
    for key, array in torch_state("sd3").items():
        shape = [size * factor if size % 32 == 0 else size for size in array.shape]
        name = key.split(".")
        for block, source in enumerate(sources):
            if name[0] != "transformer_blocks":
                state[key] = np.zeros(shape, np.float16)
            elif name[1] == str(source):
                state[".".join((name[0], str(block), *name[2:]))] = np.zeros(shape, np.float16)
    side = np.arange(12) * (4 / 12)
    table = position_embedding(32 * factor, side, side)[None].astype(np.float16)
    return state | {
        "pos_embed.pos_embed": table,
        times: np.zeros((32 * factor, 256), np.float16),
    }


def test_conversion_holds_one_copy_of_the_weights_in_memory(tmp_path):
    state = large_state()
    save_file(state, tmp_path / "half.safetensors")
    whole = sum(4 * array.size for array in state.values())
    tracemalloc.start()
    try:
        run_conversion(tmp_path / "half.safetensors", tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{peak / whole:.2f} copies of {whole / 1e6:.0f} MB")
    assert peak < 1.5 * whole
