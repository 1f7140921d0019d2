"""Plays on FrozenLake: drawn frames, read, played in the real environment, and judged.

`tp_jax.worlds.frozenlake.frames` reads a frame, two consecutive frames make a move, and the
environment decides the result of that move. A frame that can't be read ends the play, and such
plays are counted.
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

# How a play ends, in the order of tables. "lost" is who hasn't arrived after twice the moves of a
# shortest way; the others than "goal" and "hole" are of the frames.
OUTCOMES = (
    "goal", "hole", "diagonal", "jump", "edge", "no_agent", "two_agents", "unreadable", "lost",
)  # fmt: skip
ILLEGAL = ("diagonal", "jump", "edge")
# Draws of maps before there are taken to be no more distinct ones of a size.
TRIES = 200


@dataclasses.dataclass(frozen=True)
class Place:
    """A map to be played, and where it lies on the canvas."""

    desc: Map
    corner: Cell

    @property
    def size(self) -> str:
        """As "4×4"."""
        return f"{len(self.desc)}×{len(self.desc[0])}"


def held_out_places(
    sizes: Sequence[int], frozen: tuple[float, float], canvas: Canvas, num: int, seed: int = 0
) -> list[Place]:
    """Distinct maps that training never shows, up to `num` of each size.

    Of a small size there may be fewer.
    """
    places = []
    for size in sizes:
        rng, found, tries = np.random.default_rng([seed, size]), {}, 0
        while len(found) < num and tries < TRIES:
            desc = make_map(rng, size, frozen, held_out=True)
            tries = tries + 1 if desc in found else 0
            found.setdefault(desc, Place(desc, canvas.random_corner(rng, desc)))
        places += found.values()
    return places


class Play:
    """One walk through a map, frame by frame.

    Attributes:
      cell: where the agent is.
      readings, cells: of each frame so far, and where the agent was after it.
      equal: frames that show just what the true one does, of `compared` ones.
      outcome: of `OUTCOMES`, or None while it goes on.
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

    def take(self, readings: Sequence[Reading]) -> None:
        """Plays what the frames of one drawing say, until it ends."""
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
    """What kind of move two cells make: ("legal", action or None to stay) or (kind, None)."""
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
    # Out at one side and in at the other.
    around = {(0, shape[1] - 1), (shape[0] - 1, 0)}
    return ("edge" if (abs(down), abs(right)) in around else "jump"), None


def walk_randomly(place: Place, rng: np.random.Generator) -> Play:
    """The play of who takes any move that the map has room for."""
    play = Play(place)
    rows, columns = len(place.desc), len(place.desc[0])
    while play.outcome is None:
        moves = [(play.cell[0] + down, play.cell[1] + right) for down, right in MOVES]
        inside = [(r, c) for r, c in moves if 0 <= r < rows and 0 <= c < columns]
        cell = inside[rng.integers(len(inside))]
        play.take([Reading(place.desc, (cell,), 0, 0)])
    return play


def walk_as_oracle(place: Place, canvas: Canvas) -> Play:
    """The play of who draws the true frames of a shortest way, through the same reader."""
    play, desc = Play(place), place.desc
    for cell in walk(desc, play.cell, play.limit):
        if play.outcome is None:
            frame = canvas.draw(desc, cell, place.corner)
            play.take([canvas.read(frame, (len(desc), len(desc[0])), place.corner)])
    return play


def summarise(plays: Sequence[Play]) -> dict[str, Any]:
    """Number of plays, shares of each outcome and of all illegal moves, and of frames equal."""
    shares = {name: sum(play.outcome == name for play in plays) / len(plays) for name in OUTCOMES}
    return {
        "plays": len(plays),
        **shares,
        "illegal": sum(shares[name] for name in ILLEGAL),
        "frames_equal": sum(play.equal for play in plays)
        / max(sum(play.compared for play in plays), 1),
    }


def score(plays: Sequence[Play], unseen: Sequence[int]) -> dict[str, Any]:
    """`summarise` of all plays, of sizes that training shows and doesn't, and by size.

    Args:
      unseen: sizes that training doesn't show.
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
