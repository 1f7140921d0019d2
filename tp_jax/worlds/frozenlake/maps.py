"""FrozenLake maps, shortest paths through them, and the split into training and test maps.

A map is a tuple of rows of gymnasium's letters: S start, F frozen, H hole, G goal. A cell is a
tuple (row, column). Actions are 0 left, 1 down, 2 right, 3 up.
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
# One in this many maps, chosen by a hash of the map, is held out for tests.
HELD_OUT_EVERY = 5
# Number of generated maps after which `make_map` gives up.
MAX_TRIES = 2_000


def import_frozen_lake() -> Any:
    """Import gymnasium's FrozenLake module.

    Raises:
      UserError: gymnasium or pygame isn't installed.
    """
    try:
        # gymnasium imports pygame only when it renders, so check it here.
        importlib.import_module("pygame")
        from gymnasium.envs.toy_text import frozen_lake as module
    except ImportError as error:
        raise UserError(
            f"FrozenLake needs gymnasium and pygame ({error}): pip install -e '.[frozenlake]'"
        ) from error
    return module


def make_env(desc: Map, render_mode: str | None = None) -> Any:
    """Create gymnasium's environment for a map, with `is_slippery=False`."""
    return import_frozen_lake().FrozenLakeEnv(render_mode, desc=list(desc), is_slippery=False)


def find(desc: Map, letter: str) -> Cell:
    """Return the first cell with a letter.

    Example:
      >>> find(("SFF", "FHF", "FFG"), "G")
      (2, 2)
    """
    return next((r, row.index(letter)) for r, row in enumerate(desc) if letter in row)


def is_held_out(desc: Map) -> bool:
    """Return whether a map is held out for tests, which depends only on the map itself."""
    digest = hashlib.sha256("\n".join(desc).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_EVERY == 0


def make_map(
    rng: np.random.Generator, size: int, frozen: tuple[float, float], *, held_out: bool
) -> Map:
    """Generate a random solvable map with gymnasium's generator.

    Args:
      size: side of the map in cells.
      frozen: range of the probability that a cell is frozen, as in `FrozenLakeConfig`.
      held_out: whether to return a held-out test map or a training map.

    Raises:
      UserError: no such map was found in `MAX_TRIES` tries.
    """
    generate = import_frozen_lake().generate_random_map
    for _ in range(MAX_TRIES):
        seed = int(rng.integers(2**31))
        desc = tuple(generate(size, float(rng.uniform(*frozen)), seed=seed))
        if is_held_out(desc) == held_out:
            return desc
    raise UserError(
        f"config.frozenlake.frozen={frozen}: none of {MAX_TRIES} generated {size}×{size} maps is "
        f"a {'test' if held_out else 'training'} map: choose another size, or probabilities "
        f"further apart"
    )


@functools.lru_cache(maxsize=4096)
def distances_to_goal(desc: Map) -> dict[Cell, int]:
    """Return the number of moves to the goal from every cell from which it can be reached.

    Example:
      >>> distances_to_goal(("SFF", "FHF", "FFG"))[(0, 0)]
      4
    """
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
    """Return the first action of a shortest path to the goal; of several, the smallest action.

    Raises:
      ValueError: the cell is the goal, or the goal can't be reached from it.

    Example:
      >>> next_action(("SFF", "FHF", "FFG"), (0, 0))  # 1 is down
      1
    """
    left = distances_to_goal(desc)
    for action, (down, right) in enumerate(MOVES):
        following = cell[0] + down, cell[1] + right
        if cell in left and left.get(following, -1) == left[cell] - 1:
            return action
    raise ValueError(f"no move from {cell} of {desc} leads towards the goal")


def check_map(desc: Map, max_cells: int) -> str | None:
    """Return why a map can't be used, or None if it can.

    Args:
      max_cells: side in cells of the largest map that fits into a frame.

    Example:
      >>> check_map(("SH", "HG"), max_cells=8)
      'has no path from S to G'
    """
    if len({len(row) for row in desc}) != 1 or set("".join(desc)) - set("SFHG"):
        return "rows must have equal length and consist of the letters S, F, H and G"
    letters = "".join(desc)
    if letters.count("S") != 1 or letters.count("G") != 1:
        return "must have exactly one S and one G"
    if max(len(desc), len(desc[0])) > max_cells:
        return f"is {len(desc)}×{len(desc[0])}; a frame shows at most {max_cells}×{max_cells} cells"
    if find(desc, "S") not in distances_to_goal(desc):
        return "has no path from S to G"
    return None


def walk(desc: Map, start: Cell, moves: int) -> list[Cell]:
    """Follow a shortest path for a number of moves.

    The way is unique: of several shortest paths it is the one of `next_action`.

    Returns:
      The cell after each move; after the goal is reached, the agent stays there.

    Example:
      >>> walk(("SFF", "FHF", "FFG"), (0, 0), 5)
      [(1, 0), (2, 0), (2, 1), (2, 2), (2, 2)]
    """
    cell, cells = start, []
    for _ in range(moves):
        if desc[cell[0]][cell[1]] != "G":
            down, right = MOVES[next_action(desc, cell)]
            cell = cell[0] + down, cell[1] + right
        cells.append(cell)
    return cells
