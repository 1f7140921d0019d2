"""Meshes and sharding rules."""

import dataclasses
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from jax.sharding import AbstractMesh

from tp_jax import config as config_lib
from tp_jax.data.pipeline import abstract_batch
from tp_jax.messages.errors import UserError
from tp_jax.models import MODELS, DiTConfig, MMDiTConfig, build_model
from tp_jax.models.dit_config import SIZES
from tp_jax.models.parameters import abstract_params
from tp_jax.parallel import mesh as mesh_lib
from tp_jax.parallel.axes import AXES, DATA_PARALLEL, ONE_DEVICE
from tp_jax.parallel.mesh import check_batch_size, create_mesh
from tp_jax.parallel.sharding import (
    device_bytes,
    logical_axes,
    partition_spec,
    path_name,
    tree_shardings,
    with_shardings,
)
from tp_jax.thinking import ThinkingConfig
from tp_jax.train import step as step_lib
from tp_jax.train.optimizer import make_optimizer
from tp_jax.train.setup import build
from tp_jax.train.state import make_state

GOLDEN = pathlib.Path(__file__).parent / "golden"
ONE = ONE_DEVICE


def devices(sizes):
    return jax.devices()[: int(np.prod(list(sizes.values())))]


@pytest.mark.parametrize("kind", MODELS)
def test_every_leaf_has_a_sharding_rule_and_large_ones_are_sharded(kind):
    config = config_lib.default(kind, "gaussian" if kind == "dit" else "flow")
    if kind == "mmdit":
        config.model.update(qk_norm=True, dual_attention_layers=13)
    for share in (True, False):
        config.model.thinking.share_across_steps = share
        config.optimizer.clip_norm = 1.0
        model = build_model(config_lib.build(config).model)
        optimizer = make_optimizer(config.optimizer, 10)
        state = jax.eval_shape(
            lambda p, o=optimizer: make_state(p, o, "all"), abstract_params(model)
        )
        shardings = tree_shardings(state, create_mesh(ONE | dict(fsdp=2, tensor=2)))
        large = [
            sharding
            for leaf, sharding in zip(
                jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True
            )
            if leaf.size > 1e6
        ]
        assert large and not any(sharding.is_fully_replicated for sharding in large)


def test_a_parameter_without_a_sharding_rule_is_named():
    with pytest.raises(UserError, match=r"no sharding rule covers base/blocks/new/kernel"):
        logical_axes("base/blocks/new/kernel", 2)
    assert logical_axes("opt_state/0/count", 0) == ()


def test_a_mesh_axis_that_does_not_divide_a_weight_is_an_error():
    leaf = {"base": {"blocks": {"proj": {"kernel": jax.ShapeDtypeStruct((2, 6, 6), jnp.float32)}}}}
    with pytest.raises(UserError, match=r"mesh.fsdp=4 does not divide.*proj/kernel.*\(2, 6, 6\)"):
        tree_shardings(leaf, create_mesh(ONE | dict(fsdp=4)))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(data=3), "does not divide the 4 device"),
        (dict(data=-1, fsdp=3), "does not divide the 4 device"),
        (dict(data=-1, fsdp=-1), "only one axis"),
        (dict(tensor=0), "positive"),
    ],
)
def test_an_invalid_mesh_is_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        create_mesh(ONE | sizes)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """The attributes of a device that `create_mesh` reads."""

    platform: str
    slice_index: int
    id: int


def fake_devices(platform, *slices):
    """Return one fake device per entry of `slices`, which gives its slice index."""
    return [FakeDevice(platform, index, id) for id, index in enumerate(slices)]


def test_slices_come_from_tpu_hardware_and_gpus_have_none(monkeypatch):
    monkeypatch.setattr(mesh_lib.mesh_utils, "create_device_mesh", reshape_devices)
    shapes = [
        dict(create_mesh(DATA_PARALLEL, fake_devices(platform, 1, 0, 1, 0)).shape)
        for platform in ("tpu", "gpu")
    ]
    assert shapes == [ONE | dict(slices=2, data=2), ONE | dict(data=4)]
    mesh = create_mesh(ONE | dict(slices=2, fsdp=2), fake_devices("tpu", 1, 0, 1, 0))
    assert [device.slice_index for device in mesh.devices.ravel()] == [0, 0, 1, 1]
    with pytest.raises(UserError, match="to 2 slices: set config.mesh.slices=2, or 0"):
        create_mesh(ONE | dict(slices=4), fake_devices("tpu", 1, 0, 1, 0))
    assert create_mesh(ONE | dict(slices=2, data=-1), jax.devices()).shape["data"] == 2


def reshape_devices(shape, devices, **_):
    """Stand in for `create_device_mesh`, which accepts only real devices."""
    return np.array(devices, object).reshape(shape)


def test_minus_one_gives_an_axis_the_remaining_devices():
    mesh = create_mesh(ONE | dict(data=-1, tensor=2))
    assert dict(mesh.shape) == ONE | dict(data=2, tensor=2)
    with pytest.raises(UserError, match="batch=3 .* multiple of 2"):
        check_batch_size(mesh, "batch", 3)


def published_shapes(kind):
    """Return the abstract parameters of the published size, with thinking in block 12."""
    thinking = ThinkingConfig(layers=(12,), experts=4, rank=128)
    if kind == "dit":
        config = DiTConfig(**SIZES["XL"], thinking=thinking)
    else:
        config = MMDiTConfig(channels=16, out_channels=16, image_size=128, thinking=thinking)
    return abstract_params(build_model(config))


@pytest.mark.parametrize("kind", ["dit", "mmdit"])
def test_shardings_of_the_published_sizes_equal_the_golden_file(kind):
    """To update the golden file, write `found` into it and review the difference."""
    mesh = AbstractMesh((2, 2, 4, 2, 4), AXES)
    leaves, _ = jax.tree_util.tree_flatten_with_path(published_shapes(kind))
    found = {}
    for path, leaf in leaves:
        name = path_name(path)
        spec = partition_spec(logical_axes(name, leaf.ndim), leaf.shape, mesh.shape)
        assert all(
            axis is None or size % mesh.shape[axis] == 0
            for size, axis in zip(leaf.shape, spec, strict=True)
        ), name
        shards = " × ".join(
            f"{size}/{axis}" if axis else str(size)
            for size, axis in zip(leaf.shape, spec, strict=True)
        )
        found[name] = shards
    golden = json.loads((GOLDEN / "shardings.json").read_text())
    assert found == golden[kind]


def test_device_bytes_equal_the_bytes_of_the_shards():
    mesh = create_mesh(ONE | dict(fsdp=2, tensor=2), devices(ONE | dict(fsdp=4)))
    shapes = abstract_params(build_model(config_lib.build(tiny_config()).model))
    shardings = tree_shardings(shapes, mesh)
    params = jax.device_put(
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), shardings
    )
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(params)
        for shard in leaf.addressable_shards
        if shard.device == mesh.devices.flat[0]
    )
    sizes = device_bytes(shapes, shardings)
    assert sum(sizes.values()) == held
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)


def test_deterministic_options_are_for_gpus_only_and_reach_the_compiler(monkeypatch):
    def on(platform):
        device = types.SimpleNamespace(platform=platform)
        return mesh_lib.deterministic_options(types.SimpleNamespace(devices=np.array([device])))

    assert on("gpu") and not on("cpu") and not on("tpu")
    # A jaxlib that doesn't know an option refuses it on every platform.
    jax.jit(lambda x: x + 1, compiler_options=on("gpu"))(1)

    monkeypatch.setattr(step_lib, "deterministic_options", lambda mesh: {"xla_no_such_option": 1})
    config = tiny_config(deterministic=True, samples=0)
    built, mesh = config_lib.build(config), create_mesh(ONE, jax.devices()[:1])
    program = build(config, build_model(built.model), built.objective, mesh)
    state = with_shardings(program.abstract, program.shardings)
    batch = abstract_batch(config, build_model(built.model))
    with jax.set_mesh(mesh):
        lowered = program.step.trace(state, batch).lower()
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            lowered.compile()
