"""The weights of torch state dicts in our layout, each handed out once.

D width, p patch size, C channels. Torch holds linear kernels as [out, in], we as [in, out].
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tp_jax.messages.errors import UserError

# Published files hold their position tables in half precision: values up to 1, so 2^-11 apart.
TABLE_TOLERANCE = 1e-3


class StateDict:
    """A state dict that hands out every weight once, in our layout, and checks its shape.

    Every method that hands out weights raises a UserError that names the one that is missing or
    has another shape than asked for.
    """

    def __init__(self, state: Mapping[str, np.ndarray], prefix: str = "") -> None:
        """Holds the weights whose names start with `prefix`, under the rest of their names."""
        cut = len(prefix)
        self._left = {key[cut:]: array for key, array in state.items() if key.startswith(prefix)}
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def shape(self, key: str, rank: int) -> tuple[int, ...]:
        """The shape of a weight of this rank, which stays to be taken."""
        shape = self._find(key).shape
        if len(shape) != rank:
            raise UserError(f"{self._prefix}{key} has shape {list(shape)}, not {rank} axes")
        return shape

    def peek(self, key: str) -> np.ndarray:
        """A weight as torch holds it, which stays to be taken."""
        return self._find(key)

    def count(self, pattern: str) -> int:
        """How many numbered layers there are: one more than the largest (\\d+) that matches."""
        found = (re.match(pattern, key) for key in self._left)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    def _find(self, key: str) -> np.ndarray:
        if key not in self._left:
            raise UserError(
                f"the torch weights lack {self._prefix}{key}: they are of another model, or not all"
            )
        return self._left[key]

    def take(self, key: str, *shape: int) -> np.ndarray:
        """The weight, float32 and as torch holds it."""
        array = self._find(key)
        if array.shape != shape:
            raise UserError(
                f"{self._prefix}{key} has shape {list(array.shape)}, where the rest of the "
                f"weights want {list(shape)}"
            )
        return np.asarray(self._left.pop(key), np.float32)

    def drop(self, pattern: str) -> None:
        """Leaves out what matches the pattern from its start: things that are no weights."""
        self._left = {key: a for key, a in self._left.items() if not re.match(pattern, key)}

    def linear(self, key: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        """A linear layer."""
        kernel = self.take(f"{key}.weight", outputs, inputs)
        return {"kernel": kernel.T, "bias": self.take(f"{key}.bias", outputs)}

    def conv(self, key: str, inputs: int, outputs: int, side: int) -> dict[str, np.ndarray]:
        """A square convolution [out, in, side, side], as [side, side, in, out]."""
        kernel = self.take(f"{key}.weight", outputs, inputs, side, side)
        return {"kernel": kernel.transpose(2, 3, 1, 0), "bias": self.take(f"{key}.bias", outputs)}

    def patch_embed(self, key: str, channels: int, width: int, patch: int) -> dict[str, np.ndarray]:
        """A convolution [D, C, p, p] with stride p, as the linear layer of patches (p, p, C)."""
        conv = self.conv(key, channels, width, patch)
        return conv | {"kernel": conv["kernel"].reshape(-1, width)}

    def packed_qkv(self, key: str, width: int) -> dict[str, np.ndarray]:
        """Q, K and V in one linear layer [3·D, D]."""
        packed = self.linear(key, width, 3 * width)
        return {
            "kernel": packed["kernel"].reshape(width, 3, width),
            "bias": packed["bias"].reshape(3, width),
        }

    def separate_qkv(self, *keys: str, width: int) -> dict[str, np.ndarray]:
        """Q, K and V in a linear layer each."""
        return stack_qkv(*(self.linear(key, width, width) for key in keys))

    def norms(self, ours: str, torchs: str, features: int) -> dict[str, dict[str, np.ndarray]]:
        """RMS norms of queries and keys; the names end in "q" and "k" on both sides."""
        return {ours + end: {"scale": self.take(f"{torchs}{end}.weight", features)} for end in "qk"}

    def mlp(self, first: str, second: str, widths: tuple[int, int, int]) -> dict[str, Any]:
        """Two linear layers; their inputs, what is between, and their outputs."""
        inputs, hidden, outputs = widths
        return {
            "in": self.linear(first, inputs, hidden),
            "out": self.linear(second, hidden, outputs),
        }

    def check_position_table(self, key: str, expected: np.ndarray) -> None:
        """Takes a position table, which we compute; raises a UserError if it is another one."""
        table = self.take(key, 1, *expected.shape)[0]
        error = np.abs(table - expected).max()
        # Written so that a NaN is refused as well.
        if not error <= TABLE_TOLERANCE:
            raise UserError(
                f"{self._prefix}{key} is not the position table of this size of model: "
                f"it is off by {error:.2g}"
            )

    def check_used_up(self) -> None:
        """Raises a UserError that names what is left."""
        if self._left:
            names = [self._prefix + key for key in list(self._left)[:3]]
            more = f" and {len(self._left) - 3} more" if len(self._left) > 3 else ""
            raise UserError(f"this kind of model has no place for {', '.join(names)}{more}")


def stack_qkv(*layers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Three linear layers as one, {"kernel": [D, 3, D], "bias": [3, D]}."""
    return jax.tree.map(lambda *parts: np.stack(parts, axis=-2), *layers)


def stacked(block: Callable[[int], Any], layers: range) -> Any:
    """The trees of these layers, with a leading axis of layers."""
    first, *others = layers
    blocks = jax.tree.map(lambda leaf: _with_room(leaf, len(layers)), block(first))
    # Layer by layer, so that no more than one is there twice.
    for place, layer in enumerate(others, start=1):
        leaves = jax.tree.leaves(blocks), jax.tree.leaves(block(layer))
        for out, leaf in zip(*leaves, strict=True):
            out[place] = leaf
    return blocks


def _with_room(leaf: np.ndarray, layers: int) -> np.ndarray:
    """[layers, …] with this leaf as the first layer."""
    out = np.empty((layers, *leaf.shape), leaf.dtype)
    out[0] = leaf
    return out


def square_side(count: int, what: str) -> int:
    """The side of a square of so many places.

    Raises:
      UserError: it is none.
    """
    side = math.isqrt(count)
    if side**2 != count:
        raise UserError(f"{what} has {count} places, which make no square")
    return side
