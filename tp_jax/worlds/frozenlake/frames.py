"""Render FrozenLake frames as gymnasium does, and read map and agent from a frame's pixels.

A frame is a canvas of K×K cells of k×k pixels, with the map at some position on it and grey around
the map. gymnasium draws every cell independently of the others. Therefore a frame can be assembled
from tiles, which are cut from gymnasium's own rendering and downscaled by block averages.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence

import einops
import numpy as np

from tp_jax.messages.errors import UserError
from tp_jax.worlds.frozenlake.maps import Cell, Map, make_env

# gymnasium draws cells of 64×64 pixels for maps of up to 8×8 cells, and smaller ones beyond.
NATIVE_TILE, MAX_CELLS = 64, 8
# The map letters, in the order of the ground axis of `tiles`.
GROUND_LETTERS = "FHSG"
# Grey level in [0, 1] of the canvas around the map.
CANVAS_GREY = 0.5
# A cell is unreadable if its root mean square distance to the nearest tile, with pixels in [0, 1],
# is larger than this. With cells of 8×8 pixels, different tiles are at least 0.06 apart, and a tile
# with an agent is at least 0.12 from the same tile without it.
MAX_TILE_DISTANCE = 0.1
# Smallest side in pixels of a cell for which tiles are that far apart.
MIN_TILE = 8
# A cell is also unreadable if the distance to the nearest tile is more than this share of the
# distance to the second nearest.
MAX_AMBIGUITY = 0.75


@contextlib.contextmanager
def _headless_pygame() -> Iterator[None]:
    """Make pygame draw into memory, without a display and without its greeting."""
    names = {"SDL_VIDEODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def check_tile(tile: int) -> None:
    """Raise a UserError unless cells of `tile`×`tile` pixels are an exact, readable downscaling."""
    sharp = [side for side in range(MIN_TILE, NATIVE_TILE + 1) if NATIVE_TILE % side == 0]
    if tile not in sharp:
        raise UserError(
            f"config.frozenlake.tile={tile}: choose a side that divides {NATIVE_TILE} and leaves "
            f"the agent visible: {', '.join(map(str, sharp))}"
        )


def shrink(picture: np.ndarray, tile: int) -> np.ndarray:
    """Downscale gymnasium's image to cells of `tile`×`tile` pixels by block averages.

    Args:
      picture: uint8 [64·n, 64·m, 3] of n×m cells.

    Returns:
      float32 [n·tile, m·tile, 3] in [0, 1].
    """
    block = NATIVE_TILE // tile
    return einops.reduce(
        picture.astype(np.float32) / 255, "(h i) (w j) c -> h w c", "mean", i=block, j=block
    )


def render(desc: Map, cells: Sequence[Cell], tile: int) -> list[np.ndarray]:
    """Render a map with gymnasium, once for each position of the agent.

    Args:
      cells: positions of the agent.
      tile: side k of a cell in pixels.

    Returns:
      One image [n·k, m·k, 3] in [0, 1] for each position.
    """
    with _headless_pygame():
        env = make_env(desc, "rgb_array")
        env.reset(seed=0)
        pictures = []
        for row, column in cells:
            env.s = row * len(desc[0]) + column
            pictures.append(shrink(env.render(), tile))
        return pictures


@functools.lru_cache(maxsize=8)
def tiles(tile: int) -> np.ndarray:
    """Return gymnasium's tiles, downscaled to `tile`×`tile` pixels.

    Returns:
      [2, 4, 8, 8, k, k, 3] in [0, 1]. Axes: without and with the agent, index in `GROUND_LETTERS`,
      row and column of the cell, pixels. For a hole, both tiles are the same, because gymnasium
      doesn't draw an agent that has fallen in.

    Raises:
      UserError: `tile` is not a valid side, or gymnasium isn't installed.
    """
    check_tile(tile)
    native = _native_tiles()
    small = shrink(native.reshape(-1, NATIVE_TILE, 3), tile)
    return small.reshape(*native.shape[:4], tile, tile, 3)


@functools.lru_cache(maxsize=1)
def _native_tiles() -> np.ndarray:
    """Return the tiles as gymnasium renders them, uint8 [2, 4, 8, 8, 64, 64, 3]; see `tiles`."""
    found = np.zeros(
        (2, len(GROUND_LETTERS), MAX_CELLS, MAX_CELLS, NATIVE_TILE, NATIVE_TILE, 3), np.uint8
    )
    with _headless_pygame():
        for number, letter in enumerate(GROUND_LETTERS):
            # `reset` needs a map with a start, so the letters are replaced afterwards.
            env = make_env(("S" * MAX_CELLS,) * MAX_CELLS, "rgb_array")
            env.reset(seed=0)
            env.desc = np.full((MAX_CELLS, MAX_CELLS), letter.encode(), env.desc.dtype)
            for at in range(MAX_CELLS**2):
                env.s = at
                cells = einops.rearrange(
                    env.render(), "(h i) (w j) c -> h w i j c", h=MAX_CELLS, w=MAX_CELLS
                )
                row, column = divmod(at, MAX_CELLS)
                found[1, number, row, column] = cells[row, column]
                # Every cell without the agent shows only the ground.
                row, column = divmod((at + 1) % MAX_CELLS**2, MAX_CELLS)
                found[0, number, row, column] = cells[row, column]
    return found


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Geometry of the square frames on which maps are drawn.

    Attributes:
      cells: number K of cells along a side.
      tile: side k of a cell in pixels.
    """

    cells: int
    tile: int

    @property
    def max_cells(self) -> int:
        """Side in cells of the largest map that can be drawn."""
        return min(self.cells, MAX_CELLS)

    def random_corner(self, rng: np.random.Generator, desc: Map) -> Cell:
        """Return a random cell of the canvas for the map's upper left, such that the map fits."""
        row, column = (
            int(rng.integers(self.cells - side + 1)) for side in (len(desc), len(desc[0]))
        )
        return row, column

    def draw(self, desc: Map, agent: Cell | None, corner: Cell) -> np.ndarray:
        """Draw a frame, float32 [K·k, K·k, 3] in [0, 1].

        Args:
          agent: the agent's cell on the map; None draws no agent.
          corner: the cell of the canvas for the map's upper left.
        """
        k, all_tiles = self.tile, tiles(self.tile)
        rows, columns = len(desc), len(desc[0])
        ground = np.array([[GROUND_LETTERS.index(letter) for letter in row] for row in desc])
        row, column = np.ogrid[:rows, :columns]
        with_agent = np.zeros((rows, columns), int)
        if agent:
            with_agent[agent] = 1
        cells = all_tiles[with_agent, ground, row, column]
        frame = np.full((self.cells * k, self.cells * k, 3), CANVAS_GREY, np.float32)
        top, left = corner[0] * k, corner[1] * k
        frame[top : top + rows * k, left : left + columns * k] = einops.rearrange(
            cells, "h w i j c -> (h i) (w j) c"
        )
        return frame

    def read(self, frame: np.ndarray, shape: tuple[int, int], corner: Cell) -> "Reading":
        """Read map and agents from a frame, by the nearest tile of each cell.

        Args:
          frame: [K·k, K·k, 3] in [0, 1].
          shape: rows and columns of the map.
          corner: the cell of the canvas at the map's upper left, as for `draw`.
        """
        k, (rows, columns) = self.tile, shape
        cells = einops.rearrange(np.asarray(frame), "(h i) (w j) c -> h w i j c", i=k, j=k)
        inside = cells[corner[0] :, corner[1] :][:rows, :columns]
        known = tiles(k)[:, :, :rows, :columns]
        distance = _rms_distance(known, inside)
        # A hole never shows an agent, so exclude its tile with one.
        distance[1, GROUND_LETTERS.index("H")] = np.inf
        flat = distance.reshape(-1, rows, columns)
        with_agent, ground = np.divmod(flat.argmin(0), len(GROUND_LETTERS))
        nearest = np.sort(flat, axis=0)
        # NaN fails both comparisons, so a cell with NaN counts as unreadable.
        readable = (nearest[0] <= MAX_TILE_DISTANCE) & (nearest[0] <= MAX_AMBIGUITY * nearest[1])
        desc = tuple("".join(GROUND_LETTERS[number] for number in row) for row in ground)
        agents = {(int(r), int(c)) for r, c in np.argwhere(with_agent)}
        around = np.ones((self.cells, self.cells), bool)
        around[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns] = False
        agent_tiles = np.delete(tiles(k)[1], GROUND_LETTERS.index("H"), 0)
        outside = 0
        for r, c in np.argwhere(around & ~(_rms_distance(CANVAS_GREY, cells) <= MAX_TILE_DISTANCE)):
            # Outside the map, a cell that resembles any tile with an agent counts as an agent.
            if _rms_distance(agent_tiles, cells[r, c]).min() <= MAX_TILE_DISTANCE:
                agents.add((int(r) - corner[0], int(c) - corner[1]))
            else:
                outside += 1
        return Reading(desc, tuple(sorted(agents)), int((~readable).sum()), outside)


def _rms_distance(a: np.ndarray | float, b: np.ndarray) -> np.ndarray:
    """Return the root mean square difference of cells [..., k, k, 3]."""
    return np.sqrt(np.square(a - b).mean((-3, -2, -1)))


@dataclasses.dataclass(frozen=True)
class Reading:
    """The contents of a frame.

    Attributes:
      desc: the map.
      agents: cells with an agent, relative to the map's upper left. Agents outside the map are
        included: (-1, 0) is the cell above the map's upper left cell.
      unreadable: number of cells of the map that resemble no tile.
      outside: number of cells around the map that are neither grey nor show an agent.
    """

    desc: Map
    agents: tuple[Cell, ...]
    unreadable: int
    outside: int
