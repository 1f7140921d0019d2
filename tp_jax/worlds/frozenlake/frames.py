"""Frames of FrozenLake as the environment renders them, and what is on them, from pixels alone.

A frame is a canvas of K×K cells of k×k pixels, with the map somewhere on it and grey around. The
environment draws each cell by itself, so that its tiles, taken from its own rendering and scaled
down by averages of whole blocks of pixels, make up every frame that it can show.
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

# Pixels a side of a cell as the environment draws maps of up to 8 cells a side.
NATIVE, MOST = 64, 8
GROUND = "FHSG"
AROUND = 0.5
# Of a cell's pixels, in units of black to white: root mean square beyond which it is none of the
# tiles. At 8 pixels a side tiles are 0.06 apart or more, with an agent and without it 0.12.
UNREADABLE = 0.1
# Pixels a side from which tiles are so far apart.
LEAST = 8
# A cell is also unreadable where the nearest tile isn't nearer than so much of the second nearest.
AMBIGUOUS = 0.75


@contextlib.contextmanager
def _without_screen() -> Iterator[None]:
    """pygame draws into memory, and doesn't greet."""
    names = {"SDL_VIDEODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def check_tile(tile: int) -> None:
    """Raises a UserError if cells can't be shown sharply at so many pixels a side."""
    sharp = [side for side in range(LEAST, NATIVE + 1) if NATIVE % side == 0]
    if tile not in sharp:
        raise UserError(
            f"config.frozenlake.tile={tile}: cells of {NATIVE} pixels a side are shown sharply, so "
            f"that an agent is seen, only at {', '.join(map(str, sharp))}"
        )


def shrink(picture: np.ndarray, tile: int) -> np.ndarray:
    """The environment's picture [64·n, 64·m, 3] uint8 with cells of `tile` pixels, in [0, 1]."""
    block = NATIVE // tile
    return einops.reduce(
        picture.astype(np.float32) / 255, "(h i) (w j) c -> h w c", "mean", i=block, j=block
    )


def render(desc: Map, cells: Sequence[Cell], tile: int) -> list[np.ndarray]:
    """What the environment itself renders with the agent on each cell, [n·k, m·k, 3] in [0, 1]."""
    with _without_screen():
        env = make_env(desc, "rgb_array")
        env.reset(seed=0)
        pictures = []
        for row, column in cells:
            env.s = row * len(desc[0]) + column
            pictures.append(shrink(env.render(), tile))
        return pictures


@functools.lru_cache(maxsize=8)
def tiles(tile: int) -> np.ndarray:
    """[2, 4, 8, 8, k, k, 3] in [0, 1]: without and with the agent, by `GROUND`, row and column.

    Of a hole they are the same: who has fallen in isn't seen.

    Raises:
      UserError: cells can't be shown sharply so, or gymnasium isn't installed.
    """
    check_tile(tile)
    native = _native_tiles()
    small = shrink(native.reshape(-1, NATIVE, 3), tile)
    return small.reshape(*native.shape[:4], tile, tile, 3)


@functools.lru_cache(maxsize=1)
def _native_tiles() -> np.ndarray:
    """As `tiles`, as the environment renders them: [2, 4, 8, 8, 64, 64, 3] uint8."""
    found = np.zeros((2, len(GROUND), MOST, MOST, NATIVE, NATIVE, 3), np.uint8)
    with _without_screen():
        for number, letter in enumerate(GROUND):
            # The environment wants a start to reset to.
            env = make_env(("S" * MOST,) * MOST, "rgb_array")
            env.reset(seed=0)
            env.desc = np.full((MOST, MOST), letter.encode(), env.desc.dtype)
            for at in range(MOST**2):
                env.s = at
                cells = einops.rearrange(env.render(), "(h i) (w j) c -> h w i j c", h=MOST, w=MOST)
                row, column = divmod(at, MOST)
                found[1, number, row, column] = cells[row, column]
                # Any cell but the agent's shows the ground alone.
                row, column = divmod((at + 1) % MOST**2, MOST)
                found[0, number, row, column] = cells[row, column]
    return found


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Where a map lies in square frames.

    Attributes:
      cells: of a side, K.
      tile: pixels of a cell's side.
    """

    cells: int
    tile: int

    @property
    def most(self) -> int:
        """Cells a side of the largest map that it shows sharply."""
        return min(self.cells, MOST)

    def random_corner(self, rng: np.random.Generator, desc: Map) -> Cell:
        """A cell for a map's upper left, so that all of it is on the canvas."""
        row, column = (
            int(rng.integers(self.cells - side + 1)) for side in (len(desc), len(desc[0]))
        )
        return row, column

    def draw(self, desc: Map, agent: Cell | None, corner: Cell) -> np.ndarray:
        """A frame [K·k, K·k, 3] float32 in [0, 1].

        Args:
          agent: its cell; None is without one.
          corner: cell of the canvas where the map's upper left lies.
        """
        k, all_tiles = self.tile, tiles(self.tile)
        rows, columns = len(desc), len(desc[0])
        ground = np.array([[GROUND.index(letter) for letter in row] for row in desc])
        row, column = np.ogrid[:rows, :columns]
        with_agent = np.zeros((rows, columns), int)
        if agent:
            with_agent[agent] = 1
        cells = all_tiles[with_agent, ground, row, column]
        frame = np.full((self.cells * k, self.cells * k, 3), AROUND, np.float32)
        top, left = corner[0] * k, corner[1] * k
        frame[top : top + rows * k, left : left + columns * k] = einops.rearrange(
            cells, "h w i j c -> (h i) (w j) c"
        )
        return frame

    def read(self, frame: np.ndarray, shape: tuple[int, int], corner: Cell) -> "Reading":
        """What a frame [K·k, K·k, 3] in [0, 1] shows, by the nearest of the environment's tiles.

        Args:
          shape: rows and columns of the map.
          corner: as of `draw`.
        """
        k, (rows, columns) = self.tile, shape
        cells = einops.rearrange(np.asarray(frame), "(h i) (w j) c -> h w i j c", i=k, j=k)
        inside = cells[corner[0] :, corner[1] :][:rows, :columns]
        known = tiles(k)[:, :, :rows, :columns]
        # A hole has no tile with an agent.
        apart = _apart(known, inside)
        apart[1, GROUND.index("H")] = np.inf
        flat = apart.reshape(-1, rows, columns)
        with_agent, ground = np.divmod(flat.argmin(0), len(GROUND))
        nearest = np.sort(flat, axis=0)
        # Said so, because what isn't a number is below and above nothing.
        readable = (nearest[0] <= UNREADABLE) & (nearest[0] <= AMBIGUOUS * nearest[1])
        desc = tuple("".join(GROUND[number] for number in row) for row in ground)
        agents = {(int(r), int(c)) for r, c in np.argwhere(with_agent)}
        around = np.ones((self.cells, self.cells), bool)
        around[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns] = False
        outside = 0
        for r, c in np.argwhere(around & ~(_apart(AROUND, cells) <= UNREADABLE)):
            # An agent is one on any ground, wherever it lies.
            agent = _apart(np.delete(tiles(k)[1], GROUND.index("H"), 0), cells[r, c]).min()
            if agent <= UNREADABLE:
                agents.add((int(r) - corner[0], int(c) - corner[1]))
            else:
                outside += 1
        return Reading(desc, tuple(sorted(agents)), int((~readable).sum()), outside)


def _apart(a: np.ndarray | float, b: np.ndarray) -> np.ndarray:
    """Root mean square of the differences of cells' pixels [..., k, k, 3]."""
    return np.sqrt(np.square(a - b).mean((-3, -2, -1)))


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is on a frame.

    Attributes:
      desc: the map.
      agents: cells with an agent, those around the map among them, as (-1, 0) above its corner.
      unreadable: number of the map's cells that are near none of the tiles.
      outside: number of cells around the map that are neither empty nor have an agent.
    """

    desc: Map
    agents: tuple[Cell, ...]
    unreadable: int
    outside: int
