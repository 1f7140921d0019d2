"""Maps of FrozenLake, shortest ways through them, and which of them training never shows.

A map is a tuple of rows of gymnasium's letters: S start, F frozen, H hole, G goal. A cell is its
(row, column); actions are 0 left, 1 down, 2 right, 3 up.
"""

import collections
import functools
import hashlib
import importlib
from typing import Any

import numpy as np

from tp_jax.messages.errors import UserError

Map = tuple[str, ...]
Cell = tuple[int, int]
MOVES: tuple[Cell, ...] = ((0, -1), (1, 0), (0, 1), (-1, 0))
# One map in so many, by its content, is for tests alone.
HELD_OUT = 5
# Draws of the generator before there is taken to be no map of those that are wanted.
TRIES = 2_000


def frozen_lake() -> Any:
    """gymnasium's module of the environment.

    Raises:
      UserError: it or pygame isn't installed.
    """
    try:
        # gymnasium draws with pygame, and says only when it draws that there is none.
        importlib.import_module("pygame")
        from gymnasium.envs.toy_text import frozen_lake as module
    except ImportError as error:
        raise UserError(
            f"FrozenLake needs gymnasium and pygame ({error}): pip install -e '.[frozenlake]'"
        ) from error
    return module


def make_env(desc: Map, render_mode: str | None = None) -> Any:
    """The environment of a map, not slippery."""
    return frozen_lake().FrozenLakeEnv(render_mode, desc=list(desc), is_slippery=False)


def find(desc: Map, letter: str) -> Cell:
    """The first cell with a letter."""
    return next((r, row.index(letter)) for r, row in enumerate(desc) if letter in row)


def held_out(desc: Map) -> bool:
    """Whether a map is for tests alone, which its content decides."""
    digest = hashlib.sha256("\n".join(desc).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT == 0


def make_map(
    rng: np.random.Generator, size: int, frozen: tuple[float, float], *, test: bool
) -> Map:
    """A random map with a way, of gymnasium's own generator.

    Args:
      frozen: as in `FrozenLakeConfig`.
      test: of those that training never shows, or of the others.

    Raises:
      UserError: there is none.
    """
    generate = frozen_lake().generate_random_map
    for _ in range(TRIES):
        seed = int(rng.integers(2**31))
        desc = tuple(generate(size, float(rng.uniform(*frozen)), seed=seed))
        if held_out(desc) == test:
            return desc
    raise UserError(
        f"config.frozenlake.frozen={frozen}: none of {TRIES} maps of {size}×{size} is one for "
        f"{'tests' if test else 'training'}: give another size, or probabilities further apart"
    )


@functools.lru_cache(maxsize=4096)
def distances(desc: Map) -> dict[Cell, int]:
    """Moves to the goal from every cell with a way to it, by breadth-first search."""
    goal = find(desc, "G")
    found, queue = {goal: 0}, collections.deque([goal])
    while queue:
        row, column = queue.popleft()
        for down, right in MOVES:
            cell = row - down, column - right
            inside = 0 <= cell[0] < len(desc) and 0 <= cell[1] < len(desc[0])
            if inside and cell not in found and desc[cell[0]][cell[1]] != "H":
                found[cell] = found[(row, column)] + 1
                queue.append(cell)
    return found


def next_action(desc: Map, cell: Cell) -> int:
    """The first action of a shortest way to the goal: of several the least.

    Raises:
      ValueError: at the goal, or where there is no way.
    """
    left = distances(desc)
    for action, (down, right) in enumerate(MOVES):
        following = cell[0] + down, cell[1] + right
        if cell in left and left.get(following, -1) == left[cell] - 1:
            return action
    raise ValueError(f"no move from {cell} of {desc} leads on to the goal")


def check_map(desc: Map, most: int) -> str | None:
    """What keeps a map from being played, or None.

    Args:
      most: cells a side that a frame can show sharply.
    """
    if len({len(row) for row in desc}) != 1 or set("".join(desc)) - set("SFHG"):
        return "rows must be equally long and of the letters S, F, H and G"
    letters = "".join(desc)
    if letters.count("S") != 1 or letters.count("G") != 1:
        return "must have one S and one G"
    if max(len(desc), len(desc[0])) > most:
        return f"is {len(desc)}×{len(desc[0])}; a frame shows up to {most}×{most} cells sharply"
    if find(desc, "S") not in distances(desc):
        return "has no way from S to G"
    return None


def walk(desc: Map, start: Cell, moves: int) -> list[Cell]:
    """The cells [moves] of a shortest way from a cell, stepped in the environment itself.

    Who has arrived stays.
    """
    env = make_env(desc)
    env.reset(seed=0)
    columns = len(desc[0])
    env.s, cells = start[0] * columns + start[1], []
    for _ in range(moves):
        cell = divmod(int(env.s), columns)
        if desc[cell[0]][cell[1]] != "G":
            env.step(next_action(desc, cell))
        cells.append(divmod(int(env.s), columns))
    return cells
