"""What is in a picture: objects, their captions, and which combinations training never shows.

Lengths are in units of the picture's side, x to the right and y downwards from its upper left.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross", "ring")
# sRGB in [0, 1], of GenEval's names; hues lie 25° or more apart, so that hue alone tells them.
COLOURS = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.96, 0.54, 0.10),
    "yellow": (0.95, 0.92, 0.15),
    "green": (0.15, 0.68, 0.21),
    "blue": (0.15, 0.32, 0.88),
    "purple": (0.52, 0.14, 0.80),
    "pink": (0.95, 0.38, 0.74),
}
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
SKILLS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
WORDS = (
    "a", "an", "and", *NUMBERS.values(), "left", "right", "of", "above", "below",
    *COLOURS, *SHAPES, *PLURALS.values(),
)  # fmt: skip
LONGEST = 8  # words: "a red circle left of a blue square"

# Never in a training picture: these colours of these shapes, these two shapes together, and so
# many of these shapes. Every colour, shape and number is seen with others.
UNSEEN_COLOURS = frozenset(
    {
        ("red", "triangle"), ("orange", "cross"), ("yellow", "circle"), ("green", "ring"),
        ("blue", "square"), ("purple", "triangle"), ("pink", "circle"),
    }
)  # fmt: skip
UNSEEN_PAIRS = frozenset({("circle", "cross"), ("ring", "square")})
UNSEEN_COUNTS = frozenset({(2, "ring"), (3, "square"), (4, "triangle")})

# From an object's centre to its furthest side, by how many there are.
SIZES = {1: (0.18, 0.28), 2: (0.17, 0.25), 3: (0.15, 0.18), 4: (0.14, 0.155)}
TRIES = 20  # of placing an object, before all are placed anew
GAP = 0.055  # between objects, and to the border
APART = 0.08  # a said relation holds by so much more than both sizes: see `holds`


@dataclasses.dataclass(frozen=True)
class Object:
    """One object; `x` and `y` of the middle of its bounding square, `size` half its side."""

    shape: str
    colour: str
    x: float
    y: float
    size: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture's contents.

    Attributes:
      light: that every object's colour is multiplied with.
      background: grey in [0, 1] at the corners, [2, 2], bilinear between them.
      tint: added to the background's red, green and blue.
    """

    caption: str
    skill: str
    objects: tuple[Object, ...]
    light: float
    background: tuple[tuple[float, float], tuple[float, float]]
    tint: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Request:
    """What a caption asks for, before anything has a place.

    Attributes:
      objects: (shape, colour or None) of each.
      relation: of the first object to the second, or None.
    """

    skill: str
    objects: tuple[tuple[str, str | None], ...]
    relation: str | None = None

    @property
    def seen(self) -> bool:
        """Whether training may show it."""
        shapes = [shape for shape, _ in self.objects]
        coloured = {(colour, shape) for shape, colour in self.objects}
        return not (
            coloured & UNSEEN_COLOURS
            or set(itertools.combinations(sorted(set(shapes)), 2)) & UNSEEN_PAIRS
            or {(shapes.count(shape), shape) for shape in shapes} & UNSEEN_COUNTS
        )

    @property
    def caption(self) -> str:
        """Plain English of `WORDS`."""
        if self.skill == "counting":
            shape, colour = self.objects[0]
            return " ".join(filter(None, (NUMBERS[len(self.objects)], colour, PLURALS[shape])))
        names = [f"{colour} {shape}" if colour else shape for shape, colour in self.objects]
        articles = ["an" if name.startswith("orange") else "a" for name in names]
        named = [f"{article} {name}" for article, name in zip(articles, names, strict=True)]
        return f" {self.relation or 'and'} ".join(named)

    @property
    def metadata(self) -> dict[str, Any]:
        """As a line of GenEval's prompts."""
        if self.skill == "counting":
            shape, count = self.objects[0][0], len(self.objects)
            include = [{"class": shape, "count": count}]
            rules = {"include": include, "exclude": [{"class": shape, "count": count + 1}]}
        else:
            include = [
                {"class": shape, "count": 1} | ({"color": colour} if colour else {})
                for shape, colour in self.objects
            ]
            if self.relation:
                # GenEval writes the relation to the object that it is said of, and its other's
                # place in the list.
                include = include[::-1]
                include[1]["position"] = [self.relation, 0]
            rules = {"include": include}
        return {"tag": self.skill, **rules, "prompt": self.caption}


def all_requests(skill: str) -> list[Request]:
    """Everything that can be asked for of a skill, in a fixed order."""
    colours = [None] if skill in ("single_object", "two_object", "position") else list(COLOURS)
    things = list(itertools.product(SHAPES, colours))
    if skill in ("single_object", "colors"):
        return [Request(skill, (thing,)) for thing in things]
    if skill == "counting":
        return [Request(skill, ((s, None),) * n) for n, s in itertools.product(NUMBERS, SHAPES)]
    pairs = [pair for pair in itertools.product(things, things) if pair[0][0] != pair[1][0]]
    if skill == "position":
        return [Request(skill, pair, r) for r, pair in itertools.product(RELATIONS, pairs)]
    if skill == "color_attr":
        pairs = [pair for pair in pairs if pair[0][1] != pair[1][1]]
    return [Request(skill, pair) for pair in pairs]


def make_scene(request: Request, rng: np.random.Generator, *, only_seen: bool) -> Scene:
    """A random picture of a request: what it leaves open is drawn.

    Args:
      only_seen: colours that the request leaves open don't make it a combination that training
        never shows.

    Raises:
      ValueError: `only_seen` of a request that isn't.
    """
    if only_seen and not request.seen:
        raise ValueError(f"training never shows {request.caption!r}")

    def colour_of(shape: str, colour: str | None) -> str:
        if colour:
            return colour
        fitting = [c for c in COLOURS if not (only_seen and (c, shape) in UNSEEN_COLOURS)]
        return fitting[rng.integers(len(fitting))]

    colours = [colour_of(*thing) for thing in request.objects]
    shapes = [shape for shape, _ in request.objects]
    low = rng.uniform(0.15, 0.75)
    (top_left, top_right), (low_left, low_right) = (low + rng.uniform(0, 0.12, (2, 2))).tolist()
    return Scene(
        request.caption,
        request.skill,
        tuple(
            Object(shape, colour, *place)
            for shape, colour, place in zip(
                shapes, colours, _places(len(shapes), request.relation, rng), strict=True
            )
        ),
        light=rng.uniform(0.9, 1.04),
        background=((top_left, top_right), (low_left, low_right)),
        tint=tuple(rng.uniform(-0.02, 0.02, 3).tolist()),
    )


def _places(
    count: int, relation: str | None, rng: np.random.Generator
) -> list[tuple[float, float, float]]:
    """x, y and size of objects that don't touch, by rejection; `relation` of the first two."""
    while True:
        places: list[tuple[float, float, float]] = []
        for size in rng.uniform(*SIZES[count], count).tolist():
            for _ in range(TRIES):
                x, y = rng.uniform(size + GAP, 1 - size - GAP, 2).tolist()
                if all(max(abs(x - a), abs(y - b)) >= size + c + GAP for a, b, c in places):
                    places.append((x, y, size))
                    break
        if len(places) == count and (relation is None or holds(relation, *places)):
            return places


def holds(
    relation: str, first: tuple[float, float, float], second: tuple[float, float, float]
) -> bool:
    """Whether the first lies so of the second, clearly: beside it by more than aslant."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    across = abs(dy) if relation in RELATIONS[:2] else abs(dx)
    return along >= first[2] + second[2] + GAP and along >= across + APART


# Of training captions: some say more than GenEval's do, which ties colours to places.
COLOURED = 0.5


def training_scene(index: int, seed: int = 0) -> Scene:
    """The `index`-th training picture of a seed: skills in equal parts, seen combinations only."""
    rng = np.random.default_rng([seed, index])
    skill = SKILLS[rng.integers(len(SKILLS))]
    while True:
        request = _random_request(skill, rng)
        if request.seen:
            return make_scene(request, rng, only_seen=True)


def _random_request(skill: str, rng: np.random.Generator) -> Request:
    def shape() -> str:
        return SHAPES[rng.integers(len(SHAPES))]

    def colour(always: bool = False) -> str | None:
        named = always or rng.random() < COLOURED
        return tuple(COLOURS)[rng.integers(len(COLOURS))] if named else None

    if skill in ("single_object", "colors"):
        return Request(skill, ((shape(), colour(True) if skill == "colors" else None),))
    if skill == "counting":
        thing = shape(), colour()
        return Request(skill, (thing,) * int(rng.integers(2, 5)))
    first, second = rng.choice(len(SHAPES), 2, replace=False)
    coloured = skill == "color_attr" or (skill == "position" and rng.random() < COLOURED)
    pair = tuple((SHAPES[i], colour(True) if coloured else None) for i in (first, second))
    relation = RELATIONS[rng.integers(4)] if skill == "position" else None
    return Request(skill, pair, relation)
