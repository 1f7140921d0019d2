"""One table says how every parameter, EMA and optimizer leaf is cut over the mesh.

Activations are cut by their batch, and inside a layer by what `tensor` cuts of its weights. With
`jax.set_mesh` around what is traced, `constrain` and `gather` say so to the compiler, which left to
itself may cut activations by the weights' `fsdp` axis instead and exchange far more. Without a mesh
they do nothing.
"""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, cast

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tp_jax.messages.errors import UserError
from tp_jax.parallel.mesh import BATCH_AXES

# The logical axis of each dimension; None is replicated.
Axes = tuple[str | None, ...]
# Logical axis -> mesh axis. An axis that isn't here, or maps to None, is replicated.
LOGICAL_TO_MESH: dict[str | None, str | tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "expert": "expert",
}

# Parameter path (matched at its end, so that EMA and optimizer leaves follow) -> logical axes.
# `blocks`, `dual_blocks` and `last_block` are stacks: their leaves lead with a `layers` axis.
RULES = (
    # thinking
    (r"thinking/layer_\d+/norm/(scale|bias)", (None,)),
    (r"thinking/layer_\d+/gate/(token|time|condition)/kernel", ("embed", None)),
    (r"thinking/layer_\d+/gate/out/kernel", (None, None)),
    (r"thinking/layer_\d+/gate/\w+/bias", (None,)),
    (r"thinking/layer_\d+/experts/lora_a", ("expert", "embed", None, None)),
    (r"thinking/layer_\d+/experts/lora_b", ("expert", None, None, "heads")),
    (r"thinking/layer_\d+/step_experts/lora_a", (None, "expert", "embed", None, None)),
    (r"thinking/layer_\d+/step_experts/lora_b", (None, "expert", None, None, "heads")),
    # the stacks of blocks
    (r"(blocks|last_block)/\w*qkv/kernel", ("layers", "embed", None, "heads")),
    (r"(blocks|last_block)/\w*qkv/bias", ("layers", None, "heads")),
    (r"(blocks|last_block)/\w*proj/kernel", ("layers", "heads", "embed")),
    (r"(blocks|last_block)/\w*proj/bias", ("layers", "embed")),
    (r"(blocks|last_block)/\w*mlp/in/kernel", ("layers", "embed", "mlp")),
    (r"(blocks|last_block)/\w*mlp/in/bias", ("layers", "mlp")),
    (r"(blocks|last_block)/\w*mlp/out/kernel", ("layers", "mlp", "embed")),
    (r"(blocks|last_block)/\w*mlp/out/bias", ("layers", "embed")),
    (r"(blocks|last_block)/\w*adaln/kernel", ("layers", "embed", "mlp")),
    (r"(blocks|last_block)/\w*adaln/bias", ("layers", "mlp")),
    (r"(blocks|last_block)/\w*norm_(q|k)/scale", ("layers", None)),
    # embeddings and head
    (r"(patch_embed|frame_embed|context_embed)/kernel", (None, "embed")),
    (r"(patch_embed|frame_embed|context_embed)/bias", ("embed",)),
    (r"(time_embed|pooled_embed)/(in|out)/kernel", (None, "embed")),
    (r"(time_embed|pooled_embed)/(in|out)/bias", ("embed",)),
    (r"label_embed/embedding", (None, "embed")),
    (r"final/adaln/kernel", ("embed", None)),
    (r"final/out/kernel", ("embed", None)),
    (r"final/(adaln|out)/bias", (None,)),
)


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def logical_axes(name: str, ndim: int | None) -> Axes:
    """Logical axes of the leaf with this path; a scalar has none. `ndim` None isn't checked.

    Raises:
      UserError: no rule covers the leaf, or the rule is for another number of dimensions.
    """
    if ndim == 0:
        return ()
    for pattern, axes in RULES:
        if re.search(rf"(^|/|_){pattern}$", name):
            if ndim is not None and len(axes) != ndim:
                raise UserError(
                    f"the sharding rule {pattern!r} has {len(axes)} axes but {name} has {ndim}"
                )
            return axes
    raise UserError(f"no sharding rule covers {name}: add one to tp_jax/parallel/sharding.py")


def partition_spec(axes: Axes, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """The mesh axes of these logical axes.

    Experts that the axis `expert` doesn't divide aren't cut: `expert_parallel` pads them.

    Args:
      shape: of the array.
      sizes: of the mesh's axes.
    """
    spec = [LOGICAL_TO_MESH.get(axis) for axis in axes]
    for i, axis in enumerate(axes):
        if axis == "expert" and shape[i] % sizes[cast("str", spec[i])]:
            spec[i] = None
    return PartitionSpec(*spec)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf of a tree of arrays or ShapeDtypeStructs.

    Raises:
      UserError: a leaf has no rule, or the mesh doesn't divide one of its axes.
    """

    def leaf_sharding(
        path: tuple[Any, ...], leaf: jax.Array | jax.ShapeDtypeStruct
    ) -> NamedSharding:
        name = path_name(path)
        spec = partition_spec(logical_axes(name, len(leaf.shape)), leaf.shape, mesh.shape)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"config.mesh.{axis}={mesh.shape[axis]} does not divide an axis of {name} "
                    f"with shape {tuple(leaf.shape)}: choose a divisor of {size}"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def device_bytes(tree: Any, shardings: Any) -> dict[str, int]:
    """Bytes that each leaf takes on one device, largest first."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    cut = jax.tree.leaves(shardings)
    sizes = {
        path_name(path): math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for (path, leaf), sharding in zip(leaves, cut, strict=True)
    }
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """x, cut over the mesh in context by its logical axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh.shape))


def constrain_batch(tree: Any) -> Any:
    """A tree of activations [B, …], each cut by its batch alone."""

    def cut(leaf: jax.Array) -> jax.Array:
        return constrain(leaf, "batch", *(None,) * (leaf.ndim - 1))

    return jax.tree.map(cut, tree)


def gather(tree: Any, name: str, kept: tuple[str, ...] = ("heads", "mlp")) -> Any:
    """Weights as a layer computes with them: cut along the axes in `kept` alone.

    Their gradients are cut as the weights are stored, so that they are summed and scattered in one
    exchange.

    Args:
      tree: parameters of one layer.
      name: their path. A path of a stack, whose leaves have an axis of layers more, stands for
        one layer of it.
      kept: logical axes that stay cut; by default what `tensor` cuts.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree

    def gathered(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        stored = logical_axes(f"{name}/{path_name(path)}", None)[-leaf.ndim :]
        return _regather(leaf, stored, tuple(axis if axis in kept else None for axis in stored))

    return jax.tree_util.tree_map_with_path(gathered, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _regather(leaf: jax.Array, stored: Axes, used: Axes) -> jax.Array:
    return constrain(leaf, *used)


def _regathered(leaf: jax.Array, stored: Axes, used: Axes) -> tuple[jax.Array, None]:
    return constrain(leaf, *used), None


def _scattered(stored: Axes, used: Axes, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (constrain(gradient, *stored),)


_regather.defvjp(_regathered, _scattered)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Cuts the leading axis of a batch over the mesh's batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Abstract arrays that carry their shardings, for Orbax to restore onto."""

    def leaf(
        array: jax.Array | jax.ShapeDtypeStruct, sharding: NamedSharding
    ) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree, shardings)
