"""The fields of `config.frozenlake`, and the canvas that they ask for."""

import dataclasses

from ml_collections import ConfigDict

from tp_jax.messages.errors import UserError
from tp_jax.worlds.frozenlake.frames import Canvas, check_tile

# With more holes the environment's generator hardly finds a map with a way.
LEAST_FROZEN = 0.5


@dataclasses.dataclass(frozen=True)
class FrozenLakeConfig:
    """The fields of `config.frozenlake`.

    Attributes:
      sizes: cells a side of the square maps that training shows.
      unseen_sizes: of maps that are only ever tested.
      frozen: least and largest probability that a cell isn't a hole; each map draws its own.
      tile: pixels a side of a cell in a frame.
      frames_weight: of the frames that latent steps before the last decode to, in the loss.
      read_sigma: noise level in (0, 1) at which the latent steps of a drawn frame are decoded.

    Raises:
      UserError: a value out of its range, naming the field.
    """

    sizes: tuple[int, ...] = (3, 4, 5)
    unseen_sizes: tuple[int, ...] = (6,)
    frozen: tuple[float, float] = (0.6, 0.9)
    tile: int = 8
    frames_weight: float = 4.0
    read_sigma: float = 0.1

    def __post_init__(self) -> None:
        for field in ("sizes", "unseen_sizes", "frozen"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field in ("sizes", "unseen_sizes"):
            sizes = getattr(self, field)
            if not all(isinstance(size, int) and size >= 2 for size in sizes):
                raise UserError(f"config.frozenlake.{field}={sizes}: give whole numbers from 2 on")
        if not self.sizes:
            raise UserError("config.frozenlake.sizes is empty: name a size, as 3,4,5")
        both = sorted(set(self.sizes) & set(self.unseen_sizes))
        if both:
            raise UserError(
                f"config.frozenlake.sizes and .unseen_sizes both name {both}: unseen ones are for "
                f"tests alone"
            )
        if len(self.frozen) != 2 or not LEAST_FROZEN <= self.frozen[0] <= self.frozen[1] <= 1:
            raise UserError(
                f"config.frozenlake.frozen={self.frozen}: give two probabilities from "
                f"{LEAST_FROZEN} to 1, as 0.6,0.9"
            )
        if self.tile < 1:
            raise UserError(f"config.frozenlake.tile={self.tile}: must be 1 or more")
        if self.frames_weight < 0:
            raise UserError(f"config.frozenlake.frames_weight={self.frames_weight}: must be >= 0")
        if not 0 < self.read_sigma < 1:
            raise UserError(f"config.frozenlake.read_sigma={self.read_sigma}: must be in (0, 1)")


def canvas_of(config: ConfigDict) -> Canvas:
    """The canvas of `config.frozenlake` in frames of `config.model.image_size`.

    Raises:
      UserError: a map of some size can't be shown sharply.
    """
    fields, side = FrozenLakeConfig(**config.frozenlake.to_dict()), config.model.image_size
    check_tile(fields.tile)
    if side % fields.tile:
        raise UserError(
            f"config.model.image_size={side} isn't a multiple of config.frozenlake.tile="
            f"{fields.tile}: cells would be cut"
        )
    canvas = Canvas(side // fields.tile, fields.tile)
    for size in (*fields.sizes, *fields.unseen_sizes):
        if size > canvas.most:
            raise UserError(
                f"config.frozenlake: maps of {size}×{size} can't be shown sharply in frames of "
                f"{side} pixels with cells of {fields.tile}: at most "
                f"{canvas.most}×{canvas.most}"
            )
    return canvas
