"""The fields of `config.frozenlake`, and the canvas that they describe."""

import dataclasses
from typing import Annotated

from ml_collections import ConfigDict

from tp_jax.messages.errors import UserError
from tp_jax.values import Ascending, Range, check_fields
from tp_jax.values.kinds import NonNegative
from tp_jax.worlds.frozenlake.frames import Canvas, check_tile

# With more holes, gymnasium's generator rarely finds a solvable map.
MIN_FROZEN = 0.5
# Larger maps take too long to generate.
Sides = Annotated[tuple[int, ...], Range(2, 64), "must be integers >= 2, up to 64"]


@dataclasses.dataclass(frozen=True)
class FrozenLakeConfig:
    """The fields of `config.frozenlake`.

    Attributes:
      sizes: sides in cells of the square training maps.
      unseen_sizes: sides in cells of maps used only for tests.
      frozen: range of the probability that a cell isn't a hole; sampled uniformly for each map.
      tile: side of a cell in pixels.
      frames_weight: weight in the loss of the frames decoded from the latent steps before the last.
      read_sigma: noise level in (0, 1) at which the latent steps of a sampled frame are decoded.

    Raises:
      UserError: a value is out of range; the message names the field.
    """

    sizes: Sides = (3, 4, 5)
    unseen_sizes: Sides = (6,)
    frozen: Annotated[
        tuple[float, float], Range(MIN_FROZEN, 1), Ascending(),
        f"must be two probabilities from {MIN_FROZEN} to 1, the smaller one first, e.g. 0.6,0.9",
    ] = (0.6, 0.9)  # fmt: skip
    tile: Annotated[int, Range(1, 1024)] = 8
    frames_weight: NonNegative = 4.0
    read_sigma: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1

    def __post_init__(self) -> None:
        check_fields(self, "config.frozenlake.")
        if not self.sizes:
            raise UserError("config.frozenlake.sizes is empty: set at least one size, e.g. 3,4,5")
        both = sorted(set(self.sizes) & set(self.unseen_sizes))
        if both:
            raise UserError(
                f"config.frozenlake.sizes and .unseen_sizes both name {both}: a size is either for "
                f"training or only for tests"
            )


def make_canvas(config: ConfigDict) -> Canvas:
    """Build the canvas for frames of `config.model.image_size` with tiles of `config.frozenlake`.

    Raises:
      UserError: the tiles don't fit the frame, or a map size of the config doesn't fit into it.
    """
    fields, side = FrozenLakeConfig(**config.frozenlake.to_dict()), config.model.image_size
    check_tile(fields.tile)
    if side % fields.tile:
        raise UserError(
            f"config.model.image_size={side} isn't a multiple of config.frozenlake.tile="
            f"{fields.tile}"
        )
    canvas = Canvas(side // fields.tile, fields.tile)
    for size in (*fields.sizes, *fields.unseen_sizes):
        if size > canvas.max_cells:
            raise UserError(
                f"config.frozenlake: maps of {size}×{size} cells don't fit into frames of {side} "
                f"pixels with cells of {fields.tile} pixels: at most "
                f"{canvas.max_cells}×{canvas.max_cells} cells do"
            )
    return canvas
