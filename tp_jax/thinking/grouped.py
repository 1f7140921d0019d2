"""Grouped products: multiply every token by the matrices of its own expert only.

B samples, N tokens, D width, M experts, r rank, S = B·N tokens of one device.

On TPUs this is the Pallas kernel of megablox (Gale et al., arXiv 2211.15841), applied to the tokens
sorted by expert. Elsewhere `jax.lax.ragged_dot` multiplies every token by the matrices of all
experts, so the sorted tokens of each expert are padded to whole *tiles* of t rows instead. Every
tile then needs one expert, whose matrices are copied for it, and all tiles are multiplied in one
batched product. The number of tiles depends only on S, M and t, whatever the routing.
"""

# jax and flax leave parts of what their functions take and return without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.thinking.cost import choose_tile, count_tiles, current_chip
from tp_jax.thinking.experts import Experts

BLOCK = 128  # side of the blocks that the TPU kernel multiplies, in rows and columns


def grouped(u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts) -> jax.Array:
    """Multiply every token by its own expert.

    This costs 12·D·r FLOPs per token, and off TPUs also those of the rows that pad the tiles.
    Arguments and result are those of `dispatch.dense`. A token with the out-of-range expert M gets
    zeros.
    """
    count, width, _, rank = experts.lora_a.shape
    tile = choose_tile(expert.size, count, width, rank, u.dtype.itemsize, current_chip())
    return jax.lax.platform_dependent(
        u, expert, weight, experts, tpu=by_kernel, default=functools.partial(by_tiles, tile=tile)
    )


def by_tiles(
    u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts, *, tile: int
) -> jax.Array:
    """Compute `grouped` with batched products of tiles of `tile` rows, on any device."""
    batch, tokens, width = u.shape
    count, rank = experts.lora_a.shape[0], experts.lora_a.shape[-1]
    lora_a, lora_b = experts.lora_a.astype(u.dtype), experts.lora_b.astype(u.dtype)
    tiles = assign_tiles(expert.reshape(-1), count, tile)

    def into_tiles(x: jax.Array) -> jax.Array:
        return move(x, tiles.token, tiles.row).reshape(-1, tile, x.shape[-1])

    def of_tiles(matrices: jax.Array) -> jax.Array:
        return matrices.at[tiles.expert].get(mode="promise_in_bounds", indices_are_sorted=True)

    def expand(low: jax.Array, lora_b: jax.Array) -> jax.Array:
        delta = jnp.einsum("tkr,trd->tkd", low, of_tiles(lora_b))
        return move(delta.reshape(tiles.token.size, -1), tiles.row, tiles.token)

    rows = into_tiles(u.reshape(-1, width))
    a = of_tiles(lora_a.reshape(count, width, 3 * rank))
    low = jnp.einsum("tkd,tdl->tkl", rows, a, preferred_element_type=jnp.float32)
    low = (low * into_tiles(weight.reshape(-1, 1))).astype(u.dtype)
    parts = [expand(part, lora_b[:, i]) for i, part in enumerate(jnp.split(low, 3, axis=-1))]
    return jnp.stack(parts, axis=1).reshape(batch, tokens, 3, -1)


class Tiles(NamedTuple):
    """Rows of tiles assigned to the tokens of each expert.

    Attributes:
      row: [S] int32, the row of each token; out of range for a token without expert.
      token: [R] int32, the token of each row; out of range for a row that is padding.
      expert: [R/t] int32, the expert of each tile.
    """

    row: jax.Array
    token: jax.Array
    expert: jax.Array


def assign_tiles(expert: jax.Array, experts: int, tile: int) -> Tiles:
    """Assign consecutive tiles to each expert, as many as its tokens fill.

    Args:
      expert: [S] int32, the expert of each token; M for a token without expert.
      experts: M.
      tile: rows t in a tile.
    """
    tokens, tiles = len(expert), count_tiles(len(expert), experts, tile)
    sizes = group_sizes(expert, experts)
    filled = -(-sizes // tile)
    ends = jnp.cumsum(filled)
    # How far the padding before an expert moves its tokens from their sorted positions.
    shift = (ends - filled) * tile - (jnp.cumsum(sizes) - sizes)
    order = jnp.argsort(expert)
    shift = shift.at[expert[order]].get(mode="fill", fill_value=tiles * tile)
    row = jnp.arange(tokens, dtype=jnp.int32) + shift
    return Tiles(
        jnp.zeros(tokens, jnp.int32).at[order].set(row, unique_indices=True),
        jnp.full(tiles * tile, tokens, jnp.int32).at[row].set(order, mode="drop"),
        jnp.minimum((jnp.arange(tiles)[:, None] >= ends).sum(1), experts - 1),
    )


def group_sizes(expert: jax.Array, experts: int) -> jax.Array:
    """Return the number of tokens of each expert, [M] int32, for `expert` [S]."""
    return (expert[:, None] == jnp.arange(experts)).sum(0, dtype=jnp.int32)


@jax.custom_vjp
def move(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """Return the rows x[index], with zeros where `index` is out of range.

    The gradient is gathered too, by `inverse`, because adding up rows by index is slow on TPUs and
    CPUs.

    Args:
      x: [S, …].
      index: [R] int32; each index in range occurs once at most.
      inverse: [S] int32, the position of each row of x in `index`, out of range if it has none.
    """
    return x.at[index].get(mode="fill", fill_value=0)


def _move_forward(
    x: jax.Array, index: jax.Array, inverse: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return move(x, index, inverse), (index, inverse)


def _move_backward(
    indices: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    index, inverse = indices
    # JAX requires float0 zeros as the gradient of an integer argument.
    zeros = [np.zeros(each.shape, jax.dtypes.float0) for each in indices]
    return move(gradient, inverse, index), zeros[0], zeros[1]


move.defvjp(_move_forward, _move_backward)


def by_kernel(u: jax.Array, expert: jax.Array, weight: jax.Array, experts: Experts) -> jax.Array:
    """Compute `grouped` with the TPU kernel for the products."""
    batch, tokens, width = u.shape
    count, rank = experts.lora_a.shape[0], experts.lora_a.shape[-1]
    lora_a, lora_b = experts.lora_a.astype(u.dtype), experts.lora_b.astype(u.dtype)
    expert = expert.reshape(-1)
    sizes, order = group_sizes(expert, count), jnp.argsort(expert)
    inverse = jnp.argsort(order)
    rows = move(u.reshape(-1, width), order, inverse)
    low = megablox(rows, lora_a.reshape(count, width, 3 * rank), sizes, jnp.float32)
    low = (low * move(weight.reshape(-1, 1), order, inverse)).astype(u.dtype).reshape(-1, 3, rank)
    parts = [megablox(low[:, i], lora_b[:, i], sizes, u.dtype) for i in range(3)]
    delta = jnp.stack(parts, axis=1)
    return move(delta, inverse, order).reshape(batch, tokens, 3, -1)


def megablox(
    rows: jax.Array,
    weights: jax.Array,
    sizes: jax.Array,
    dtype: jnp.dtype,
    interpret: bool = False,
) -> jax.Array:
    """Multiply each group of consecutive rows by its own matrix, with the TPU kernel.

    Args:
      rows: [S, K], sorted by group.
      weights: [M, K, L], one matrix per group.
      sizes: [M] int32, number of rows in each group.
      dtype: of the result.
      interpret: run the kernel slowly, on any device.

    Returns:
      [S, L]. Rows after the last group are zeros.
    """
    # Imported here because importing Pallas is slow and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.megablox import ops

    count = len(rows)
    filled = jnp.pad(rows, ((0, -count % BLOCK), (0, 0)))
    tiling = (BLOCK, BLOCK, BLOCK)
    gmm = cast("Callable[..., jax.Array]", ops.gmm)
    product = gmm(filled, weights, sizes, dtype, tiling, None, None, False, interpret)[:count]
    # The kernel leaves the rows after the last group uninitialised.
    in_group = jnp.arange(count) < sizes.sum()
    return jnp.where(in_group[:, None], product, 0)
