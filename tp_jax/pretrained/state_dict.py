"""Convert the weights of torch state dicts to Flax layout and back, and check that all are used.

A reader is a function from a `StateDict` to parameters. It only moves values, so that
`write_state_dict` gets the way back from the same function.

D width, p patch size, C channels. Linear kernels are [out, in] in torch and [in, out] in Flax.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tp_jax.files.finite import check_finite, check_floating
from tp_jax.messages.errors import UserError

# Largest error of a position table: files may store values up to 1 in bfloat16.
TABLE_TOLERANCE = 2**-8


class StateDict:
    """A torch state dict that converts each weight once and checks its shape.

    The methods that return weights remove them from the state dict, so that `check_all_used` finds
    those that no method asked for. If a weight is missing or has another shape than requested,
    they raise a UserError that names it.
    """

    def __init__(self, state: Mapping[str, np.ndarray], prefix: str = "") -> None:
        """Keep the weights with names that start with `prefix`, and strip the prefix."""
        cut = len(prefix)
        self._remaining = {
            key[cut:]: array for key, array in state.items() if key.startswith(prefix)
        }
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        return key in self._remaining

    def shape(self, key: str, rank: int) -> tuple[int, ...]:
        """Return the shape of a weight with `rank` axes, without removing the weight."""
        shape = self._find(key).shape
        if len(shape) != rank:
            raise UserError(f"{self._prefix}{key} has shape {list(shape)}, expected {rank} axes")
        return shape

    def peek(self, key: str) -> np.ndarray:
        """Return a weight in torch's layout, without removing it."""
        return self._find(key)

    def count(self, pattern: str) -> int:
        """Return the number of numbered layers: the largest (\\d+) that matches, plus one."""
        found = (re.match(pattern, key) for key in self._remaining)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    def _find(self, key: str) -> np.ndarray:
        if key not in self._remaining:
            raise UserError(
                f"the torch weights lack {self._prefix}{key}: they are incomplete, or belong to "
                f"another kind of model"
            )
        return self._remaining[key]

    def take(self, key: str, *shape: int) -> np.ndarray:
        """Remove and return a weight of this shape, as float32 in torch's layout.

        NaN and infinity raise a UserError too.
        """
        array = self._take(key, *shape)
        check_finite(f"{self._prefix}{key}", array, "download the weights again")
        return array

    def _take(self, key: str, *shape: int) -> np.ndarray:
        array = self._find(key)
        if array.shape != shape:
            raise UserError(
                f"{self._prefix}{key} has shape {list(array.shape)}, but the other weights "
                f"imply {list(shape)}"
            )
        check_floating(f"{self._prefix}{key}", array, "give weights that aren't quantised")
        # A float64 that overflows becomes infinite, which `take` refuses.
        with np.errstate(over="ignore"):
            return np.asarray(self._remaining.pop(key), np.float32)

    def drop(self, pattern: str) -> None:
        """Remove the entries with names that match the pattern at their start."""
        self._remaining = {
            key: a for key, a in self._remaining.items() if not re.match(pattern, key)
        }

    def linear(self, key: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        """Convert a linear layer."""
        kernel = self.take(f"{key}.weight", outputs, inputs)
        return {"kernel": kernel.T, "bias": self.take(f"{key}.bias", outputs)}

    def conv(self, key: str, inputs: int, outputs: int, side: int) -> dict[str, np.ndarray]:
        """Convert a square convolution from [out, in, side, side] to [side, side, in, out]."""
        kernel = self.take(f"{key}.weight", outputs, inputs, side, side)
        return {"kernel": kernel.transpose(2, 3, 1, 0), "bias": self.take(f"{key}.bias", outputs)}

    def patch_embed(self, key: str, channels: int, width: int, patch: int) -> dict[str, np.ndarray]:
        """Convert a convolution [D, C, p, p] of stride p to a linear layer [p·p·C, D]."""
        conv = self.conv(key, channels, width, patch)
        return conv | {"kernel": conv["kernel"].reshape(-1, width)}

    def packed_qkv(self, key: str, width: int) -> dict[str, np.ndarray]:
        """Convert queries, keys and values that share one linear layer [3·D, D]."""
        packed = self.linear(key, width, 3 * width)
        return {
            "kernel": packed["kernel"].reshape(width, 3, width),
            "bias": packed["bias"].reshape(3, width),
        }

    def separate_qkv(self, *keys: str, width: int) -> dict[str, np.ndarray]:
        """Convert queries, keys and values that have one linear layer each."""
        return stack_qkv(*(self.linear(key, width, width) for key in keys))

    def norms(
        self, prefix: str, torch_prefix: str, features: int
    ) -> dict[str, dict[str, np.ndarray]]:
        """Convert the RMS norms of queries and keys; both prefixes are followed by "q" and "k"."""
        return {
            prefix + end: {"scale": self.take(f"{torch_prefix}{end}.weight", features)}
            for end in "qk"
        }

    def mlp(self, first: str, second: str, widths: tuple[int, int, int]) -> dict[str, Any]:
        """Convert two linear layers; `widths` are their input, hidden and output features."""
        inputs, hidden, outputs = widths
        return {
            "in": self.linear(first, inputs, hidden),
            "out": self.linear(second, hidden, outputs),
        }

    def check_position_table(self, key: str, expected: np.ndarray) -> None:
        """Remove a position table, and raise a UserError unless it equals the computed one."""
        table = self._take(key, 1, *expected.shape)[0]
        error = np.abs(table - expected).max()
        # `not <=` instead of `>`, so that NaN raises the error too.
        if not error <= TABLE_TOLERANCE:
            raise UserError(
                f"{self._prefix}{key} is not the position table of a model of this size: "
                f"the largest difference is {error:.2g}"
            )

    def check_copy(self, key: str, of: str, *shape: int) -> None:
        """Remove a weight, and raise a UserError unless it equals the weight `of`."""
        if not np.array_equal(self.peek(key), self.peek(of)):
            raise UserError(
                f"{self._prefix}{key} differs from {self._prefix}{of}: our model has one weight "
                f"for both"
            )
        self.take(key, *shape)

    def check_all_used(self) -> None:
        """Raise a UserError that names the weights that no method has removed."""
        if self._remaining:
            names = [self._prefix + key for key in list(self._remaining)[:3]]
            more = f" and {len(self._remaining) - 3} more" if len(self._remaining) > 3 else ""
            raise UserError(f"this kind of model doesn't use {', '.join(names)}{more}")


class _Wanted(StateDict):
    """Stands for the state dict that `write_state_dict` wants, while a reader reads it.

    Attributes:
      shapes: of the weights that the reader took.
      tables: the position tables that it checked.
      copies: the weights that it compared with another one -> that one.
    """

    def __init__(self, arrays: Mapping[str, jax.Array] | None = None) -> None:
        """Give the reader these arrays, which jax traces; None gives it zeros."""
        super().__init__({})
        self._arrays = arrays
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.tables: dict[str, np.ndarray] = {}
        self.copies: dict[str, str] = {}

    def take(self, key: str, *shape: int) -> Any:
        self.shapes[key] = shape
        return jnp.zeros(shape) if self._arrays is None else self._arrays[key]

    def check_position_table(self, key: str, expected: np.ndarray) -> None:
        self.tables[key] = expected[None]

    def check_copy(self, key: str, of: str, *shape: int) -> None:
        self.copies[key] = of

    def check_all_used(self) -> None:
        pass


def write_state_dict(read: Callable[[StateDict], Any], params: Any) -> dict[str, np.ndarray]:
    """Return the state dict from which a reader reads these parameters.

    A reader permutes the values of the weights. The transpose of a permutation is its inverse, so
    that jax's transpose of the reader computes the state dict, without any rounding.

    Args:
      read: the reader. It must move each value to exactly one place.
      params: what it shall read: a tree of float32 arrays.

    Returns:
      The weights by name, in torch's layout, with position tables and copies.
    """
    wanted = _Wanted()
    jax.eval_shape(lambda: read(wanted))
    shapes = {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in wanted.shapes.items()}
    transpose = jax.linear_transpose(lambda arrays: read(_Wanted(arrays)), shapes)
    (found,) = transpose(jax.tree.map(jnp.asarray, params))
    state = {key: np.asarray(array) for key, array in found.items()} | wanted.tables
    return state | {key: state[of] for key, of in wanted.copies.items()}


def stack_qkv(*layers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stack three linear layers into {"kernel": [D, 3, D], "bias": [3, D]}."""
    return jax.tree.map(lambda *parts: _stack(parts, axis=-2), *layers)


def swap_halves(layer: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Swap the two halves of the outputs of a linear layer."""

    def swap(array: np.ndarray) -> np.ndarray:
        halves = array.reshape(*array.shape[:-1], 2, -1)
        return halves[..., ::-1, :].reshape(array.shape)

    return {name: swap(array) for name, array in layer.items()}


def _stack(parts: Sequence[Any], axis: int) -> Any:
    """Stack arrays of NumPy, or arrays that jax traces."""
    xp = np if isinstance(parts[0], np.ndarray) else jnp
    return xp.stack(parts, axis=axis)


def stack_layers(block: Callable[[int], Any], layers: range) -> Any:
    """Convert layers one by one, and stack their parameters along a leading axis.

    Args:
      block: function from the number of a layer to its parameters.
      layers: the numbers of the layers.
    """
    number, *others = layers
    first = block(number)
    if not isinstance(jax.tree.leaves(first)[0], np.ndarray):
        return jax.tree.map(lambda *leaves: _stack(leaves, axis=0), first, *map(block, others))
    blocks = jax.tree.map(lambda leaf: _allocate_stack(leaf, len(layers)), first)
    # Copy layer by layer, so that memory holds only one layer twice.
    for index, layer in enumerate(others, start=1):
        leaves = jax.tree.leaves(blocks), jax.tree.leaves(block(layer))
        for out, leaf in zip(*leaves, strict=True):
            out[index] = leaf
    return blocks


def _allocate_stack(leaf: np.ndarray, layers: int) -> np.ndarray:
    """Allocate an array [layers, …], and copy a leaf to its first layer."""
    out = np.empty((layers, *leaf.shape), leaf.dtype)
    out[0] = leaf
    return out


def square_side(count: int, name: str) -> int:
    """Return the side of a square grid with `count` positions.

    Args:
      count: number of positions.
      name: name of the position table, for the error message.

    Raises:
      UserError: `count` isn't a square number.

    Example:
      >>> square_side(256, "pos_embed")
      16
    """
    side = math.isqrt(count)
    if side**2 != count:
        raise UserError(f"{name} has {count} positions, which isn't a square number")
    return side
