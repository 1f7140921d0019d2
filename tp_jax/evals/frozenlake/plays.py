"""Play FrozenLake with the moves that generated frames show, and judge the outcome.

`tp_jax.worlds.frozenlake.frames` reads the map and the agent's cell from each frame. The cells in
two consecutive frames define a move, and gymnasium's environment decides its result. A frame that
can't be read ends the play with the outcome "unreadable".
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tp_jax.worlds.frozenlake.frames import Canvas, Reading
from tp_jax.worlds.frozenlake.maps import (
    MOVES,
    Cell,
    Map,
    distances_to_goal,
    find,
    make_env,
    make_map,
    walk,
)

# The ways a play can end, in the order of tables. "lost": the agent didn't reach the goal within
# twice the length of the shortest path. All others except "goal" and "hole" are errors in a frame.
OUTCOMES = (
    "goal", "hole", "diagonal", "jump", "edge", "no_agent", "two_agents", "unreadable", "lost",
)  # fmt: skip
ILLEGAL = ("diagonal", "jump", "edge")
# Stop looking for new maps of a size after this many repeated maps in a row.
MAX_REPEATS = 200


@dataclasses.dataclass(frozen=True)
class Place:
    """A map and its position on the canvas.

    Attributes:
      desc: the map.
      corner: cell of the canvas at the map's upper left corner.
    """

    desc: Map
    corner: Cell

    @property
    def size(self) -> str:
        """Size of the map as text, such as "4×4"."""
        return f"{len(self.desc)}×{len(self.desc[0])}"


def held_out_places(
    sizes: Sequence[int], frozen: tuple[float, float], canvas: Canvas, num: int, seed: int = 0
) -> list[Place]:
    """Return distinct maps that training never shows, up to `num` of each size.

    There may be fewer of a small size, because few such maps exist.

    Args:
      sizes: sides of the square maps, in cells.
      frozen: range of the probability that a cell is frozen.
      canvas: the canvas that the maps are placed on.
      num: maximum number of maps of each size.
      seed: seed of the maps and their positions.
    """
    places = []
    for size in sizes:
        rng, found, repeats = np.random.default_rng([seed, size]), {}, 0
        while len(found) < num and repeats < MAX_REPEATS:
            desc = make_map(rng, size, frozen, held_out=True)
            repeats = repeats + 1 if desc in found else 0
            found.setdefault(desc, Place(desc, canvas.random_corner(rng, desc)))
        places += found.values()
    return places


class Play:
    """One walk through a map, frame by frame.

    Attributes:
      place: the map and its position on the canvas.
      cell: current cell of the agent.
      limit: maximum number of frames: twice the length of the shortest path.
      readings, cells: for each frame so far, its reading and the agent's cell after its move.
      equal, compared: number of frames that show exactly the true map and agent, and number of
        frames that were compared.
      outcome: one of `OUTCOMES`; None until the play ends.
    """

    def __init__(self, place: Place) -> None:
        self.place, self.cell = place, find(place.desc, "S")
        self._env = make_env(place.desc)
        self._env.reset(seed=0)
        self.limit = 2 * distances_to_goal(place.desc)[self.cell]
        self.readings: list[Reading] = []
        self.cells: list[Cell] = []
        self.equal = self.compared = 0
        self.outcome: str | None = None

    def advance(self, readings: Sequence[Reading]) -> None:
        """Play the moves shown by consecutive frames until the play ends.

        Args:
          readings: readings of the frames from one sampling run of the model.
        """
        true = walk(self.place.desc, self.cell, len(readings))
        for reading, wanted in zip(readings, true, strict=True):
            if self.outcome:
                return
            self.compared += 1
            self.equal += (
                reading.desc == self.place.desc
                and reading.agents == (wanted,)
                and not (reading.unreadable or reading.outside)
            )
            self.readings.append(reading)
            self.outcome = self._move(reading)
            self.cells.append(self.cell)
            if self.outcome is None and len(self.cells) >= self.limit:
                self.outcome = "lost"

    def _move(self, reading: Reading) -> str | None:
        if reading.unreadable or reading.outside:
            return "unreadable"
        if len(reading.agents) != 1:
            return "two_agents" if reading.agents else "no_agent"
        desc = self.place.desc
        kind, action = classify(self.cell, reading.agents[0], (len(desc), len(desc[0])))
        if kind != "legal":
            return kind
        if action is None:
            return None
        columns = len(desc[0])
        state = self._env.step(action)[0]
        self.cell = divmod(int(state), columns)
        if self.cell != reading.agents[0]:
            raise AssertionError(f"the environment went to {self.cell}, not {reading.agents[0]}")
        return {"G": "goal", "H": "hole"}.get(desc[self.cell[0]][self.cell[1]])


def classify(before: Cell, after: Cell, shape: tuple[int, int]) -> tuple[str, int | None]:
    """Classify the move between two cells.

    Args:
      before, after: (row, column) of the agent.
      shape: rows and columns of the map.

    Returns:
      ("legal", action), with action None if the agent stays; or (kind, None) with a kind of
      `ILLEGAL`.

    Example:
      >>> classify((0, 0), (0, 1), (4, 4)), classify((0, 0), (1, 1), (4, 4))
      (('legal', 2), ('diagonal', None))
      >>> classify((0, 0), (-1, 0), (4, 4)), classify((0, 0), (0, 3), (4, 4))
      (('edge', None), ('edge', None))
    """
    down, right = after[0] - before[0], after[1] - before[1]
    inside = 0 <= after[0] < shape[0] and 0 <= after[1] < shape[1]
    if not inside:
        return ("edge" if abs(down) + abs(right) == 1 else "jump"), None
    if (down, right) == (0, 0):
        return "legal", None
    if (down, right) in MOVES:
        return "legal", MOVES.index((down, right))
    if abs(down) == abs(right) == 1:
        return "diagonal", None
    # A move that leaves the map on one side and re-enters it on the opposite side.
    wrapped = {(0, shape[1] - 1), (shape[0] - 1, 0)}
    return ("edge" if (abs(down), abs(right)) in wrapped else "jump"), None


def walk_randomly(place: Place, rng: np.random.Generator) -> Play:
    """Play uniformly random moves that stay on the map."""
    play = Play(place)
    rows, columns = len(place.desc), len(place.desc[0])
    while play.outcome is None:
        moves = [(play.cell[0] + down, play.cell[1] + right) for down, right in MOVES]
        inside = [(r, c) for r, c in moves if 0 <= r < rows and 0 <= c < columns]
        cell = inside[rng.integers(len(inside))]
        play.advance([Reading(place.desc, (cell,), 0, 0)])
    return play


def walk_as_oracle(place: Place, canvas: Canvas) -> Play:
    """Play the true frames along a shortest path, read in the same way as generated frames."""
    play, desc = Play(place), place.desc
    for cell in walk(desc, play.cell, play.limit):
        if play.outcome is None:
            frame = canvas.draw(desc, cell, place.corner)
            play.advance([canvas.read(frame, (len(desc), len(desc[0])), place.corner)])
    return play


def summarise(plays: Sequence[Play]) -> dict[str, Any]:
    """Return the number of plays and, as shares from 0 to 1, the outcomes and equal frames.

    Returns:
      "plays"; the share of each outcome; "illegal": their sum over `ILLEGAL`; "frames_equal": the
      share of frames that show exactly the true map and agent.
    """
    shares = {name: sum(play.outcome == name for play in plays) / len(plays) for name in OUTCOMES}
    return {
        "plays": len(plays),
        **shares,
        "illegal": sum(shares[name] for name in ILLEGAL),
        "frames_equal": sum(play.equal for play in plays)
        / max(sum(play.compared for play in plays), 1),
    }


def score(plays: Sequence[Play], unseen: Sequence[int]) -> dict[str, Any]:
    """Summarise all plays, those on map sizes seen and unseen in training, and those of each size.

    Args:
      plays: the plays.
      unseen: sides of the maps that training doesn't show.

    Returns:
      The result of `summarise` for "all", "seen_sizes", "unseen_sizes" and each size, such as
      "4×4"; groups without plays are left out.
    """
    names = {f"{size}×{size}" for size in unseen}
    groups = {
        "all": plays,
        "seen_sizes": [play for play in plays if play.place.size not in names],
        "unseen_sizes": [play for play in plays if play.place.size in names],
    }
    for size in sorted({play.place.size for play in plays}):
        groups[size] = [play for play in plays if play.place.size == size]
    return {name: summarise(group) for name, group in groups.items() if group}
