"""Random keys as a function of (seed, stream name, train_step), so that no key is carried in state.

A resumed run therefore samples the same numbers as an uninterrupted one, on any mesh.
"""

import functools
import zlib

import jax


def stream_key(seed: int, stream: str, train_step: int | jax.Array = 0) -> jax.Array:
    """Return the PRNG key of a named stream at one train step.

    Args:
      seed: the seed of the run, `config.seed`.
      stream: a name for what is sampled, such as "noise"; streams of other names are independent.
      train_step: an int, or an int32 scalar under jit.

    Returns:
      A scalar typed key (`jax.random.key`).

    Example:
      >>> noise_key = stream_key(0, "noise", train_step=5)
      >>> bool(noise_key == stream_key(0, "noise", train_step=5))
      True
      >>> bool(noise_key == stream_key(0, "noise", train_step=6))
      False
      >>> bool(noise_key == stream_key(0, "dropout", train_step=5))
      False
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, train_step)


def sample_keys(key: jax.Array, sample: jax.Array) -> jax.Array:
    """Return one key for each sample, which depends on nothing else in the batch.

    Args:
      key: a scalar key, as `stream_key` returns it.
      sample: int [B], the index of each sample in the global batch.

    Returns:
      Keys [B]. How the batch is sharded or split into micro-batches doesn't change them.

    Example:
      >>> key = stream_key(0, "noise")
      >>> keys = sample_keys(key, jax.numpy.arange(4))
      >>> keys.shape
      (4,)
      >>> bool((sample_keys(key, jax.numpy.array([2, 3])) == keys[2:]).all())
      True
    """
    return jax.vmap(functools.partial(jax.random.fold_in, key))(sample)
