"""Weights with NaN or infinity are refused by every reader; a DiT without null class."""

import json

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import tiny_config
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from published_weights import convert, torch_state

from tp_jax.config import build, default
from tp_jax.files.orbax import save_weights
from tp_jax.messages.errors import UserError
from tp_jax.models import DiTConfig, build_model
from tp_jax.models.parameters import abstract_params, check_finite_params
from tp_jax.pretrained.autoencoder import convert_autoencoder, load_autoencoder
from tp_jax.pretrained.dit import infer_dit, read_dit
from tp_jax.pretrained.folder import load_folder, save_folder
from tp_jax.pretrained.inception import convert_inception
from tp_jax.pretrained.sd3 import infer_sd3, read_sd3
from tp_jax.thinking import ThinkingConfig
from tp_jax.workdir.checkpoints import load_base, open_manager, restore_params

# NaN and infinity

CONVERTERS = {
    "dit": lambda state: read_dit(state, infer_dit(state, heads=4)),
    "sd3": lambda state: read_sd3(state, infer_sd3(state, heads=4)),
    "vae16": convert_autoencoder,
    "inception": convert_inception,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [("dit", np.nan), ("dit", np.inf), ("dit", -np.inf), ("sd3", np.nan), ("vae16", np.inf),
     ("inception", np.nan)],
)  # fmt: skip
def test_converters_name_the_first_bad_weight(name, value):
    state = torch_state(name)
    keys = [key for key in state if "num_batches" not in key and "pos_embed" not in key]
    for key in keys[:: len(keys) // 3]:
        bad = np.array(state[key], np.float32)
        bad.reshape(-1)[-1] = value
        last = ", ".join(str(size - 1) for size in bad.shape)
        with pytest.raises(UserError) as error:
            CONVERTERS[name](state | {key: bad})
        assert str(error.value).startswith(f"{key} has the value {value} at [{last}]")


def test_values_that_overflow_float32_are_refused():
    state = torch_state("dit")
    key = "blocks.1.mlp.fc1.bias"
    with pytest.raises(UserError, match=f"{key} has the value inf at .0.: download"):
        CONVERTERS["dit"](state | {key: np.full(state[key].shape, 1e300)})


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.bool_, np.complex64])
def test_quantised_weights_are_refused(dtype):
    state, key = torch_state("dit"), "blocks.1.mlp.fc1.weight"
    with pytest.raises(UserError, match=f"^{key} holds .*, not floating-point.*aren't quantised$"):
        CONVERTERS["dit"](state | {key: state[key].astype(dtype)})


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_any_floating_dtype_are_converted(dtype):
    state = torch_state("dit")
    found = CONVERTERS["dit"]({key: array.astype(dtype) for key, array in state.items()})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8, atol=1e-6),
        found,
        CONVERTERS["dit"](state),
    )


def test_a_negative_variance_of_inception_is_refused():
    state = torch_state("inception")
    key = "Conv2d_1a_3x3.bn.running_var"
    with pytest.raises(UserError, match=f"{key} is negative"):
        convert_inception(state | {key: -state[key]})


BAD = {"a": np.zeros(3, np.float32), "b": {"c": np.array([[0, 1], [np.inf, np.nan]], np.float32)}}
MATCH = r"the weight (thinking/)?b/c has the value inf at \[1, 0\]: "


def on_device(tree):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)


def test_converted_folders_and_bases_with_bad_weights_are_refused(tmp_path):
    folder = epath.Path(tmp_path / "folder")
    save_folder(folder, BAD, "inception", {}, "file")
    with pytest.raises(UserError, match=f"folder: {MATCH}convert the weights again"):
        load_folder(folder, "inception")
    base = epath.Path(tmp_path / "base")
    save_weights(base, BAD)
    with pytest.raises(UserError, match=f"the base .*base: {MATCH}give another base"):
        load_base(str(base), on_device(BAD))


def test_a_folder_whose_weights_are_not_those_of_its_identity_is_refused(tmp_path):
    first, second = (epath.Path(tmp_path / name) for name in ("first", "second"))
    save_folder(first, {"a": np.zeros(3)}, "inception", {}, "file")
    save_folder(second, {"a": np.ones(3)}, "inception", {}, "file")
    load_folder(second, "inception")
    (second / "description.json").write_text((first / "description.json").read_text())
    with pytest.raises(UserError, match=r"second is damaged: its weights aren't those that desc"):
        load_folder(second, "inception")


@pytest.mark.parametrize(
    "config", [{}, {"block_widths": 3}, {"depth": 2, "block_widths": [32]},
               {"scale": float("nan"), "block_widths": [32]}],
)  # fmt: skip
def test_an_autoencoder_with_a_wrong_config_is_refused(config, tmp_path):
    folder = epath.Path(tmp_path / "vae")
    save_folder(folder, {"a": np.zeros(3)}, "sd-vae", config, "file")
    with pytest.raises(UserError, match=r"vae: the config in description.json isn't that of an"):
        load_autoencoder(folder)


def test_checkpoints_with_bad_weights_are_refused_for_sampling(tmp_path):
    good = {"a": np.ones(3, np.float32)}
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        items = dict(base=good, thinking=BAD, ema={"thinking": good})
        saves = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        manager.save(3, args=ocp.args.Composite(**saves))
    with open_manager(epath.Path(tmp_path)) as manager:
        wanted = on_device({"base": good, "thinking": BAD})
        with pytest.raises(
            UserError, match=f"checkpoint 3 in .*checkpoints: {MATCH}choose another"
        ):
            restore_params(manager, 3, wanted, ema=False)
        found = restore_params(manager, 3, on_device({"base": good, "thinking": good}), ema=True)
        np.testing.assert_array_equal(found["thinking"]["a"], good["a"])


def test_the_index_in_a_sharded_weight_is_that_of_the_whole():
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    array = np.zeros((8, 3), np.float32)
    array[5, 2] = np.nan
    sharded = jax.device_put(array, NamedSharding(mesh, PartitionSpec("x")))
    with pytest.raises(UserError, match=r"F: the weight w has the value nan at \[5, 2\]: R"):
        check_finite_params("F", {"w": sharded}, "R")


# A DiT without null class


def without_null_class(**changes):
    config = tiny_config()
    config.model.null_class = False
    config.sampling.guidance_scale = 1.0
    config.train.condition_dropout = 0.0
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return config


def test_a_model_without_null_class_has_a_row_for_each_class():
    model = build(without_null_class()).model
    assert model.label_rows == 10 and not model.has_null and model.classes == 10
    shapes = abstract_params(build_model(model))
    assert shapes["base"]["label_embed"]["embedding"].shape == (10, 16)
    assert build(tiny_config()).model.label_rows == 11
    assert default("dit", "flow").model.null_class and DiTConfig(num_classes=0).label_rows == 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sampling__guidance_scale": 1.5}, "guidance_scale=1.5: guidance needs the null class"),
        ({"sampling__guidance_scale": 0.0}, "guidance_scale=0.0: guidance needs the null class"),
        ({"train__condition_dropout": 0.1}, "config.train.condition_dropout=0.1 needs the null"),
        ({"model__num_classes": 0}, "null_class=False needs config.model.num_classes of 1 or more"),
    ],
)
def test_guidance_and_dropout_without_null_class_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        build(without_null_class(**changes))


def test_the_flag_of_convert_and_fine_tuning_from_the_folder(tmp_path):
    said = convert(tmp_path, torch_state("dit"), "dit", "--heads=4", "--nonull_class")
    assert "num_classes 11, null_class False" in said and "read as" not in said
    out = tmp_path / "out"
    assert json.loads((out / "description.json").read_text())["config"]["num_classes"] == 11
    fields = dict(json.loads((out / "description.json").read_text())["config"])
    fields.pop("learned_sigma")
    model = build_model(DiTConfig(**fields, thinking=ThinkingConfig(layers=())))
    wanted = on_device(abstract_params(model)["base"])
    found = load_base(str(out), wanted, fields)["label_embed"]["embedding"]
    theirs = torch_state("dit")["y_embedder.embedding_table.weight"]
    np.testing.assert_array_equal(found, theirs)
    # The table has 11 rows in both models.
    for changes, match in (
        ({"null_class": True}, "has null_class=False, but config.model.null_class=True"),
        ({"num_classes": 10}, "has num_classes=11, but config.model.num_classes=10"),
    ):
        with pytest.raises(UserError, match=match):
            load_base(str(out), wanted, fields | changes)


def test_convert_says_that_the_last_row_is_taken_as_the_null_class(converted):
    log = (converted("dit").parent / "log").read_text()
    assert "the 11 rows of the label table are read as 10 classes and the null class" in log
    assert "give --nonull_class" in log and "num_classes 10, null_class True" in log
