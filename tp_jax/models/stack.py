"""Stacks of equal blocks: scanned in segments, with the thinking blocks run in between."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from tp_jax.models import splash, xla_attention
from tp_jax.parallel.sharding import constrain_batch, gather
from tp_jax.thinking.layer import AttentionReplacement, Conditioning, RoutingStats

# The result of splash attention is always kept: it is as small as the block's input, and costs more
# to compute than anything else in a block with many tokens.
_SPLASH = jax.checkpoint_policies.save_only_these_names(splash.RESIDUALS)
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(splash.RESIDUALS, xla_attention.RESIDUALS),
    ),
    "full": _SPLASH,
}


class Stack(NamedTuple):
    """Equal blocks: one module, and its parameters with a leading axis of layers.

    Attributes:
      name: path of the parameters in the model.
      block: the module, called as (carry, conditioning, replacement of attention or None).
      params: stacked parameters.
      layers: number of blocks.
    """

    name: str
    block: nn.Module
    params: Any
    layers: int


def declare_stack(
    module: nn.Module, name: str, block: nn.Module, layers: int, *example: Any
) -> Stack:
    """Declare the stacked parameters of `layers` equal blocks under `module/name`.

    Args:
      module: the module to which the parameters belong.
      name: of the stack among its parameters.
      block: one unbound block.
      layers: number of blocks.
      example: arguments for the block's `init`; shapes and dtypes are enough.
    """

    def init(key):
        def one(key):
            zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), example)
            return block.init(key, *zeros)["params"]

        return jax.lax.map(one, jax.random.split(key, layers))

    return Stack(name, block, module.param(name, init), layers)


def run_stacks(
    stacks: list[Stack],
    carry: Any,
    y: Conditioning,
    thinking: Mapping[int, AttentionReplacement],
    *,
    remat: str,
    scan: bool,
) -> tuple[Any, dict[int, RoutingStats]]:
    """Run all blocks in order.

    Args:
      stacks: in the order of the blocks. Block indices count through all stacks.
      carry: first argument and first result of every block.
      y: embeddings that condition every block.
      thinking: {block index: function that the block calls instead of its attention}.
      remat: a key of `REMAT_POLICIES`, which activations are stored for the backward pass.
      scan: False unrolls the blocks, which compiles slowly and gives the same values.

    Returns:
      The last carry, and {block index: statistics of its thinking layer}.
    """

    def checkpointed(f, scanned):
        policy = REMAT_POLICIES[remat]
        # prevent_cse: outside a loop, common-subexpression elimination would undo the remat.
        return f if policy is None else jax.checkpoint(f, policy=policy, prevent_cse=not scanned)

    y, dtype = constrain_batch(y), jax.tree.leaves(carry)[0].dtype

    def apply(stack, carry, layer_params, think=None):
        # Cast before gathering: in bfloat16 this halves the bytes that are exchanged.
        layer_params = gather(jax.tree_util.tree_map_with_path(in_dtype, layer_params), stack.name)
        carry = constrain_batch(carry)
        carry, stats = stack.block.apply({"params": layer_params}, carry, y, think)
        return constrain_batch(carry), stats

    def in_dtype(path, leaf):
        return leaf.astype(dtype) if path[-1].key in ("kernel", "bias") else leaf

    routing_stats, first = {}, 0
    for stack in stacks:
        params, layers = stack.params, stack.layers

        def plain(carry, layer_params, stack=stack):
            return apply(stack, carry, layer_params)[0], None

        def thinking_block(carry, layer_params, think, stack=stack):
            return apply(stack, carry, layer_params, think)

        for start, stop in _segments(layers, {i - first for i in thinking}):
            part = jax.tree.map(lambda leaf, start=start, stop=stop: leaf[start:stop], params)
            if first + start in thinking:
                layer_params = jax.tree.map(lambda leaf: leaf[0], part)
                run = checkpointed(thinking_block, scanned=False)
                carry, routing_stats[first + start] = run(
                    carry, layer_params, thinking[first + start]
                )
            else:
                carry, _ = jax.lax.scan(
                    checkpointed(plain, scan), carry, part, unroll=1 if scan else stop - start
                )
        first += layers
    return carry, routing_stats


def _segments(layers: int, single: set[int]) -> list[tuple[int, int]]:
    """Split range(layers) into (start, stop) segments, where each index in `single` is alone.

    Example:
      >>> _segments(6, {2})
      [(0, 2), (2, 3), (3, 6)]
    """
    cuts = sorted({0, layers} | {c for i in single if 0 <= i < layers for c in (i, i + 1)})
    return list(itertools.pairwise(cuts))
