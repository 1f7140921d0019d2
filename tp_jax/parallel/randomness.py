"""Randomness as a function of (seed, name of the stream, train_step), never carried in state."""

import functools
import zlib

import jax


def stream_key(seed: int, stream: str, train_step: int | jax.Array = 0) -> jax.Array:
    """The PRNG key of one stream at one train_step."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, train_step)


def sample_keys(key: jax.Array, sample: jax.Array) -> jax.Array:
    """One key for each sample index [B]: independent of how the batch is cut."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(sample)
