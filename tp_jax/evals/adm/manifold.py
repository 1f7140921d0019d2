"""Precision and recall of features. N, M rows, D features; R, C rows of two blocks.

Pairwise distances are computed block by block, so that memory doesn't grow with the number of rows.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 4096  # rows and columns of a block of distances: 64 MiB of float32
# Rows and columns of the ADM evaluator's own blocks. Where float16 overflows anywhere in one of
# them, the evaluator computes that whole block in float32.
EVALUATOR_BLOCK = 10_000
FLOAT16_MAX = 65504.0


def precision_recall(
    reference: np.ndarray,
    sample: np.ndarray,
    neighbours: int = 3,
    *,
    half: bool = True,
    block: int = BLOCK,
) -> tuple[float, float]:
    """Return precision and recall: the shares of samples and of references in the other's manifold.

    The manifold of a set is the union of closed balls around its rows. The radius of a ball is the
    distance from its row to the `neighbours`-th nearest other row of the same set.

    Args:
      reference: features [N, D], N > neighbours.
      sample: features [M, D], M > neighbours.
      neighbours: k of the radii.
      half: round distances to float16 after every operation, as the ADM evaluator does, except in
        those of its blocks, of `EVALUATOR_BLOCK` rows and columns, where float16 overflows. This
        changes the shares by about half a percent. If False, distances are float32.
      block: size of the blocks [block, block] that distances are computed in, which bounds the
        memory and doesn't change the result.

    Returns:
      (precision, recall), each from 0 to 1.

    Source: Kynkäänniemi et al. 2019, arXiv 1904.06991; the arithmetic of openai/guided-diffusion.

    Example:
      >>> reference = np.array([[0.0], [1.0], [2.0], [3.0]])
      >>> precision_recall(reference, np.array([[0.5], [1.5], [9.0], [10.0]]), neighbours=1)
      (0.5, 0.75)
    """
    a, b = _split_into_blocks(reference, block), _split_into_blocks(sample, block)
    radii_a, radii_b = _all_radii(a, neighbours, half), _all_radii(b, neighbours, half)
    rounded = _rounded_parts(a, b, half)
    a_inside, b_inside = [False] * len(a), [False] * len(b)
    for i, (rows, radius) in enumerate(zip(a, radii_a, strict=True)):
        for j, (columns, other_radius) in enumerate(zip(b, radii_b, strict=True)):
            use_half = (rows.part, columns.part) in rounded
            in_b, in_a = _inside(rows, columns, radius, other_radius, use_half)
            a_inside[i], b_inside[j] = a_inside[i] | in_b, b_inside[j] | in_a
    precision, recall = (
        float(np.concatenate(_without_padding(inside, blocks)).mean())
        for inside, blocks in ((b_inside, b), (a_inside, a))
    )
    return precision, recall


def _without_padding(values: list[Any], blocks: list["_Block"]) -> list[np.ndarray]:
    return [np.asarray(x)[: block.num_rows] for x, block in zip(values, blocks, strict=True)]


class _Block(NamedTuple):
    """Rows [R, D] and their squared norms [R], in float32 and rounded to float16.

    Only the first `num_rows` rows are data; the rest are zero padding, so that all blocks have the
    same shape. `part` numbers the evaluator's block that the rows belong to.
    """

    rows: jax.Array
    norms: jax.Array
    half_rows: jax.Array
    half_norms: jax.Array
    num_rows: int
    part: int


def _split_into_blocks(features: np.ndarray, block: int) -> list[_Block]:
    size = min(block, len(features), EVALUATOR_BLOCK)
    blocks = []
    for part, first in enumerate(range(0, len(features), EVALUATOR_BLOCK)):
        of_part = features[first : first + EVALUATOR_BLOCK]
        for start in range(0, len(of_part), size):
            rows = np.asarray(of_part[start : start + size], np.float32)
            padded = jnp.asarray(np.pad(rows, ((0, size - len(rows)), (0, 0))))
            values, norms, half_rows, half_norms = _with_norms(padded)
            blocks.append(_Block(values, norms, half_rows, half_norms, len(rows), part))
    return blocks


@jax.jit
def _with_norms(rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    half_rows = _round_to_float16(rows)
    norms = jnp.square(rows).sum(axis=1)
    return rows, norms, half_rows, _sum_in_float16(_round_to_float16(jnp.square(half_rows)))


def _rounded_parts(a: list[_Block], b: list[_Block], half: bool) -> set[tuple[int, int]]:
    """Return the pairs of the evaluator's blocks whose distances are rounded to float16."""
    overflowing: set[tuple[int, int]] = set()
    pairs = list(itertools.product(a, b)) if half else []
    # No intermediate result is larger than (|a| + |b|)². Half of the largest float16 leaves room
    # for rounding. Inception's features are far below it, so this test is enough for them.
    norms = [max(float(block.norms.max()) for block in blocks) for blocks in (a, b)]
    if sum(np.sqrt(norms)) ** 2 > FLOAT16_MAX / 2:
        overflowing = {
            (rows.part, columns.part)
            for rows, columns in pairs
            if not jnp.isfinite(_squared_distances(rows, columns, True)).all()
        }
    return {(rows.part, columns.part) for rows, columns in pairs} - overflowing


def _all_radii(blocks: list[_Block], neighbours: int, half: bool) -> list[jax.Array]:
    """Return squared radii [R] for each block; padding rows get -1: no point is in their ball."""
    rounded = _rounded_parts(blocks, blocks, half)
    radii: list[jax.Array] = []
    for rows in blocks:
        # Each row is its own nearest neighbour, so keep one distance more than `neighbours`.
        nearest = jnp.full((len(rows.rows), neighbours + 1), jnp.inf)
        for columns in blocks:
            use_half = (rows.part, columns.part) in rounded
            nearest = _update_nearest(nearest, rows, columns, use_half)
        valid = jnp.arange(len(rows.rows)) < rows.num_rows
        radii.append(jnp.where(valid, nearest[:, neighbours], -1))
    return radii


@functools.partial(jax.jit, static_argnames="half")
def _update_nearest(nearest: jax.Array, rows: _Block, columns: _Block, half: bool) -> jax.Array:
    """Return the k smallest of `nearest` [R, k] and the distances to `columns` without padding."""
    valid = jnp.arange(len(columns.rows)) < columns.num_rows
    distances = jnp.where(valid, _squared_distances(rows, columns, half), jnp.inf)
    both = jnp.concatenate([nearest, distances], axis=1)
    return -jax.lax.top_k(-both, nearest.shape[1])[0]


@functools.partial(jax.jit, static_argnames="half")
def _inside(
    rows: _Block, columns: _Block, row_radii: jax.Array, column_radii: jax.Array, half: bool
) -> tuple[jax.Array, jax.Array]:
    """Return whether each row is in a column's ball [R], and each column in a row's ball [C]."""
    distances = _squared_distances(rows, columns, half)
    return (
        (distances <= column_radii).any(axis=1),
        (distances <= row_radii[:, None]).any(axis=0),
    )


@functools.partial(jax.jit, static_argnames="half")
def _squared_distances(a: _Block, b: _Block, half: bool) -> jax.Array:
    """Return squared L2 distances [R, C] float32; `half` rounds every operation to float16."""
    rows, columns = (a.half_rows, b.half_rows) if half else (a.rows, b.rows)
    products = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
    if not half:
        return jnp.maximum(a.norms[:, None] - 2 * products + b.norms, 0)
    twice = _round_to_float16(2 * _round_to_float16(products))
    return jnp.maximum(
        _round_to_float16(_round_to_float16(a.half_norms[:, None] - twice) + b.half_norms), 0
    )


def _round_to_float16(x: jax.Array) -> jax.Array:
    """Round float32 to values that float16 can represent.

    XLA may remove a cast to float16 and back, so use `reduce_precision`.
    """
    return jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)


def _sum_in_float16(x: jax.Array) -> jax.Array:
    """Sum [R, D] over D with float16 partial sums; x must be rounded to float16 already.

    The order of additions is that of TensorFlow's CPU kernel at D = 2048: each 1024 columns are
    summed into 32 float16 accumulators, these are reduced to 8, and the 8 are added in float32.
    """
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % 1024)))
    parts = x.reshape(len(x), -1, 32, 4, 8)
    running = _add_sequentially(parts, axis=2)
    folded = _add_sequentially(running, axis=2)
    return _add_sequentially(_round_to_float16(folded.sum(axis=-1)), axis=1)


def _add_sequentially(x: jax.Array, axis: int) -> jax.Array:
    terms = [jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]
    return functools.reduce(lambda a, b: _round_to_float16(a + b), terms)
