"""Precision and recall of features. N, M rows, D features; R, C rows of two blocks."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 4096  # rows on each side of a block of distances: 64 MiB of float32


def precision_recall(
    reference: np.ndarray,
    sample: np.ndarray,
    neighbours: int = 3,
    *,
    half: bool = True,
    block: int = BLOCK,
) -> tuple[float, float]:
    """Shares of samples inside the reference's manifold, and of references inside the samples'.

    A manifold is the union of balls around its rows, each reaching to the row's `neighbours`-th
    nearest other row, its border included.

    Args:
      reference, sample: features [N, D] and [M, D], both longer than `neighbours`.
      half: distances rounded to float16 at every step wherever a whole block stays finite, as
        the ADM evaluator's are; it moves the shares by about half a percent. Else float32.
      block: distances [block, block] are held at a time.

    Source: Kynkäänniemi et al. 2019, arXiv 1904.06991; the arithmetic of openai/guided-diffusion.
    """
    a, b = _blocks(reference, block), _blocks(sample, block)
    radii_a = [_radii(rows, a, neighbours, half) for rows in a]
    radii_b = [_radii(rows, b, neighbours, half) for rows in b]
    a_inside, b_inside = [False] * len(a), [False] * len(b)
    for i, (rows, radius) in enumerate(zip(a, radii_a, strict=True)):
        for j, (columns, other_radius) in enumerate(zip(b, radii_b, strict=True)):
            in_b, in_a = _inside(rows, columns, radius, other_radius, half)
            a_inside[i], b_inside[j] = a_inside[i] | in_b, b_inside[j] | in_a
    precision, recall = (
        float(np.concatenate(jax.device_get(inside))[: len(features)].mean())
        for inside, features in ((b_inside, sample), (a_inside, reference))
    )
    return precision, recall


class _Block(NamedTuple):
    """Rows [R, D] and their squared norms [R], float32 and rounded to float16.

    The first `real` rows are real, the others zeros.
    """

    rows: jax.Array
    norms: jax.Array
    half_rows: jax.Array
    half_norms: jax.Array
    real: int


def _blocks(features: np.ndarray, block: int) -> list[_Block]:
    size = min(block, len(features))
    found = []
    for start in range(0, len(features), size):
        rows = np.asarray(features[start : start + size], np.float32)
        padded = jnp.asarray(np.pad(rows, ((0, size - len(rows)), (0, 0))))
        values, norms, half_rows, half_norms = _prepared(padded)
        found.append(_Block(values, norms, half_rows, half_norms, len(rows)))
    return found


@jax.jit
def _prepared(rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    half_rows = _half(rows)
    norms = jnp.square(rows).sum(axis=1)
    return rows, norms, half_rows, _half_sum(_half(jnp.square(half_rows)))


def _radii(rows: _Block, columns: list[_Block], neighbours: int, half: bool) -> jax.Array:
    """Squared radii [R]; the row itself is neighbour 0. Padding gets -1: nothing is inside."""
    nearest = jnp.full((len(rows.rows), neighbours + 1), jnp.inf)
    for column in columns:
        nearest = _nearer(nearest, rows, column, half)
    return jnp.where(jnp.arange(len(rows.rows)) < rows.real, nearest[:, neighbours], -1)


@functools.partial(jax.jit, static_argnames="half")
def _nearer(nearest: jax.Array, rows: _Block, columns: _Block, half: bool) -> jax.Array:
    """The smallest of `nearest` [R, k] and of the distances to the real columns."""
    real = jnp.arange(len(columns.rows)) < columns.real
    distances = jnp.where(real, _squared_distances(rows, columns, half), jnp.inf)
    both = jnp.concatenate([nearest, distances], axis=1)
    return -jax.lax.top_k(-both, nearest.shape[1])[0]


@functools.partial(jax.jit, static_argnames="half")
def _inside(
    rows: _Block, columns: _Block, row_radii: jax.Array, column_radii: jax.Array, half: bool
) -> tuple[jax.Array, jax.Array]:
    """Whether each row is inside a column's ball [R], and each column inside a row's [C]."""
    distances = _squared_distances(rows, columns, half)
    return (
        (distances <= column_radii).any(axis=1),
        (distances <= row_radii[:, None]).any(axis=0),
    )


def _squared_distances(a: _Block, b: _Block, half: bool) -> jax.Array:
    """Squared L2 distances [R, C] float32; with `half`, rounded unless that overflows."""

    def full() -> jax.Array:
        products = jnp.matmul(a.rows, b.rows.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.maximum(a.norms[:, None] - 2 * products + b.norms, 0)

    if not half:
        return full()
    products = jnp.matmul(a.half_rows, b.half_rows.T, precision=jax.lax.Precision.HIGHEST)
    twice = _half(2 * _half(products))
    rough = jnp.maximum(_half(_half(a.half_norms[:, None] - twice) + b.half_norms), 0)
    return jax.lax.cond(jnp.isfinite(rough).all(), lambda: rough, full)


def _half(x: jax.Array) -> jax.Array:
    """Rounds float32 to the values of float16; a cast there and back may be optimised away."""
    return jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)


def _half_sum(x: jax.Array) -> jax.Array:
    """Sums [R, D] over D with float16 partial sums, for x that is rounded already.

    The order is that of TensorFlow's CPU kernel at D = 2048: in each 1024 columns 32 running
    sums; these folded to 8, which are added in float32.
    """
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % 1024)))
    parts = x.reshape(len(x), -1, 32, 4, 8)
    running = _add_in_turn(parts, axis=2)
    folded = _add_in_turn(running, axis=2)
    return _add_in_turn(_half(folded.sum(axis=-1)), axis=1)


def _add_in_turn(x: jax.Array, axis: int) -> jax.Array:
    terms = [jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]
    return functools.reduce(lambda a, b: _half(a + b), terms)
