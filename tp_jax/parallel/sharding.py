"""The table of sharding rules for all parameter, EMA and optimizer leaves, and how to apply it.

Activations are sharded over the batch axes and, inside a layer, over `tensor` where the weights
are. `constrain` and `gather` pass this to the compiler as sharding constraints. Without them XLA
may shard activations along the weights' `fsdp` axis, which needs far more communication. They use
the mesh of `jax.set_mesh` around the traced function; without a mesh they do nothing.
"""

# Some jax and flax functions have partial type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tp_jax.messages.errors import UserError
from tp_jax.parallel.axes import BATCH_AXES

# The logical axis of each dimension; None means replicated.
Axes = tuple[str | None, ...]
# Logical axis -> mesh axis or axes. A logical axis that isn't listed is replicated.
LOGICAL_TO_MESH: dict[str | None, str | tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "expert": "expert",
}

# Parameter path -> logical axes. The first pattern that matches the end of a path applies, so EMA
# and optimizer leaves are sharded like their parameters. Leaves of `blocks`, `dual_blocks` and
# `last_block` are stacked over layers, so their first axis is `layers`.
RULES = (
    # thinking
    (r"thinking/layer_\d+/norm/(scale|bias)", (None,)),
    (r"thinking/layer_\d+/gate/(token|time|condition)/kernel", ("embed", None)),
    (r"thinking/layer_\d+/gate/out/kernel", (None, None)),
    (r"thinking/layer_\d+/gate/\w+/bias", (None,)),
    (r"thinking/layer_\d+/halt/(kernel|bias)", (None,)),
    (r"thinking/layer_\d+/experts/lora_a", ("expert", "embed", None, None)),
    (r"thinking/layer_\d+/experts/lora_b", ("expert", None, None, "heads")),
    (r"thinking/layer_\d+/step_experts/lora_a", (None, "expert", "embed", None, None)),
    (r"thinking/layer_\d+/step_experts/lora_b", (None, "expert", None, None, "heads")),
    # stacked blocks
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
    """Return a pytree path as a string `a/b/c`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def logical_axes(name: str, ndim: int | None) -> Axes:
    """Return the logical axes of a leaf, from the first rule in `RULES` that matches its path.

    Args:
      name: the path of the leaf, `a/b/c`.
      ndim: its number of dimensions, checked against the rule unless None. A scalar (0) has no
        axes and needs no rule.

    Raises:
      UserError: no rule matches the leaf, or the rule has another number of dimensions.
    """
    if ndim == 0:
        return ()
    for pattern, axes in RULES:
        if re.search(rf"(^|/|_){pattern}$", name):
            if ndim is not None and len(axes) != ndim:
                raise UserError(
                    f"the sharding rule {pattern!r} has {len(axes)} axes but {name} has {ndim}: "
                    f"correct it in tp_jax/parallel/sharding.py"
                )
            return axes
    raise UserError(f"no sharding rule covers {name}: add one to tp_jax/parallel/sharding.py")


def partition_spec(axes: Axes, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Return the PartitionSpec that maps logical axes to mesh axes.

    If the mesh axis `expert` doesn't divide the number of experts, experts are replicated;
    `expert_parallel` pads them.

    Args:
      axes: the logical axis of each dimension.
      shape: the shape of the array.
      sizes: the size of each mesh axis.
    """
    spec = [LOGICAL_TO_MESH.get(axis) for axis in axes]
    for i, axis in enumerate(axes):
        if axis == "expert" and shape[i] % sizes[cast("str", spec[i])]:
            spec[i] = None
    return PartitionSpec(*spec)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """Return a NamedSharding for every leaf of a tree of arrays or ShapeDtypeStructs.

    Raises:
      UserError: no rule matches a leaf, or a mesh axis doesn't divide the axis it shards.
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
    """Return the bytes of each leaf on one device, {path: bytes}, largest first."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    cut = jax.tree.leaves(shardings)
    sizes = {
        path_name(path): math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for (path, leaf), sharding in zip(leaves, cut, strict=True)
    }
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain the sharding of x by its logical axes, on the mesh of `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh.shape))


def constrain_batch(tree: Any) -> Any:
    """Constrain each activation [B, …] of a tree to be sharded over its batch axis only."""

    def constrain_leaf(leaf: jax.Array) -> jax.Array:
        return constrain(leaf, "batch", *(None,) * (leaf.ndim - 1))

    return jax.tree.map(constrain_leaf, tree)


def gather(tree: Any, name: str, kept: tuple[str, ...] = ("heads", "mlp")) -> Any:
    """All-gather weights for use in a layer: sharded only along the logical axes in `kept`.

    The gradients get the sharding that the weights are stored with, so that the compiler can sum
    and scatter them in one reduce-scatter.

    Args:
      tree: parameters of one layer.
      name: their path, by which the sharding rules are found. For one layer of a stack, the path
        of the stack; the rule's leading `layers` axis is then dropped.
      kept: logical axes that stay sharded; by default those of the mesh axis `tensor`.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree

    def gather_leaf(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        stored = logical_axes(f"{name}/{path_name(path)}", None)[-leaf.ndim :]
        used = tuple(axis if axis in kept else None for axis in stored)
        return _constrain_with_gradient(leaf, stored, used)

    return jax.tree_util.tree_map_with_path(gather_leaf, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _constrain_with_gradient(leaf: jax.Array, stored: Axes, used: Axes) -> jax.Array:
    """Constrain a weight to the axes `used`, and its gradient to the axes `stored`."""
    return constrain(leaf, *used)


def _forward(leaf: jax.Array, stored: Axes, used: Axes) -> tuple[jax.Array, None]:
    return constrain(leaf, *used), None


def _backward(stored: Axes, used: Axes, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (constrain(gradient, *stored),)


_constrain_with_gradient.defvjp(_forward, _backward)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its leading axis over the mesh's batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_from_hosts(arrays: Any, sharding: NamedSharding) -> Any:
    """Shard a tree of NumPy arrays that every process holds whole.

    Each process supplies its own shards. device_put would first compare the whole arrays across
    processes.
    """

    def shard(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(shard, arrays)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Return abstract arrays that carry their shardings, as a target for Orbax to restore onto."""

    def leaf(
        array: jax.Array | jax.ShapeDtypeStruct, sharding: NamedSharding
    ) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree, shardings)
