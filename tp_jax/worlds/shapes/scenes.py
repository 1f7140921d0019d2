"""Scenes of coloured shapes, their captions, and the combinations held out from training.

Lengths are in units of the image's side. The origin is the upper left corner; x points right and y
points down.
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross", "ring")
# sRGB in [0, 1], with names from GenEval. Hues are at least 25° apart, so that the hue identifies a
# colour.
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
MAX_WORDS = 8  # as in "a red circle left of a blue square"

# Combinations held out from training: a colour of a shape, two shapes in one image, and a number of
# objects of a shape. Training shows every colour, shape and number in other combinations.
UNSEEN_COLOURS = frozenset(
    {
        ("red", "triangle"), ("orange", "cross"), ("yellow", "circle"), ("green", "ring"),
        ("blue", "square"), ("purple", "triangle"), ("pink", "circle"),
    }
)  # fmt: skip
UNSEEN_PAIRS = frozenset({("circle", "cross"), ("ring", "square")})
UNSEEN_COUNTS = frozenset({(2, "ring"), (3, "square"), (4, "triangle")})

PLACEMENT_TRIES = 20  # positions tried for an object before all objects are placed again
MIN_GAP = 0.055  # between objects, and between an object and the border
RELATION_MARGIN = 0.08  # how clearly a relation must hold: see `relation_holds`


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """What scenes may contain; captions and held-out combinations follow the same rules in all.

    Attributes:
      shapes, colours: names from `SHAPES` and `COLOURS`.
      sizes: ranges of `Object.size` in scenes of 1, 2, 3 and 4 objects.
      cells: side of the grid of cells that hold one object each; 0 places objects anywhere.
      jitter: largest distance of an object's x and y from the centre of its cell.
      plain: every background is `GREY` and every light 1; otherwise both vary.
      min_size: smallest `Object.size` that counts when images are judged. A model that doesn't yet
        draw whole objects draws fragments, and a corner of a square is a small square.
    """

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    sizes: tuple[tuple[float, float], ...]
    cells: int = 0
    jitter: float = 0.0
    plain: bool = False
    min_size: float = 0.0


GREY = 0.25  # plain background
HARD = Difficulty(
    SHAPES,
    tuple(COLOURS),
    ((0.18, 0.28), (0.17, 0.25), (0.15, 0.18), (0.14, 0.155)),
)
EASY = Difficulty(
    SHAPES,
    ("red", "yellow", "green", "blue", "purple", "pink"),
    ((0.155, 0.175),) * 4,
    cells=2,
    jitter=0.02,
    plain=True,
    min_size=0.12,
)
# config.shapes.difficulty -> difficulty
DIFFICULTIES = {"easy": EASY, "hard": HARD}


@dataclasses.dataclass(frozen=True)
class Object:
    """One object.

    Attributes:
      x, y: centre of its bounding square.
      size: half the side of its bounding square.
    """

    shape: str
    colour: str
    x: float
    y: float
    size: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """The contents of an image.

    Attributes:
      skill: one of `SKILLS`.
      light: brightness factor of the objects' colours.
      background: grey levels in [0, 1] of the four corners, [2, 2], interpolated bilinearly.
      tint: offset added to the background's red, green and blue.
    """

    caption: str
    skill: str
    objects: tuple[Object, ...]
    light: float
    background: tuple[tuple[float, float], tuple[float, float]]
    tint: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Request:
    """What a caption asks for; positions and sizes aren't chosen yet.

    Attributes:
      skill: one of `SKILLS`.
      objects: (shape, colour) of each object; the colour is None if any colour is correct.
      relation: position of the first object relative to the second, one of `RELATIONS`, or None.

    Example:
      >>> request = Request("position", (("circle", "red"), ("square", None)), "left of")
      >>> request.caption, request.seen
      ('a red circle left of a square', True)
    """

    skill: str
    objects: tuple[tuple[str, str | None], ...]
    relation: str | None = None

    @property
    def seen(self) -> bool:
        """Whether training may show this combination, i.e. it isn't held out."""
        shapes = [shape for shape, _ in self.objects]
        coloured = {(colour, shape) for shape, colour in self.objects}
        return not (
            coloured & UNSEEN_COLOURS
            or set(itertools.combinations(sorted(set(shapes)), 2)) & UNSEEN_PAIRS
            or {(shapes.count(shape), shape) for shape in shapes} & UNSEEN_COUNTS
        )

    @property
    def caption(self) -> str:
        """The caption, in the words of `WORDS`."""
        if self.skill == "counting":
            shape, colour = self.objects[0]
            return " ".join(filter(None, (NUMBERS[len(self.objects)], colour, PLURALS[shape])))
        names = [f"{colour} {shape}" if colour else shape for shape, colour in self.objects]
        articles = ["an" if name.startswith("orange") else "a" for name in names]
        named = [f"{article} {name}" for article, name in zip(articles, names, strict=True)]
        return f" {self.relation or 'and'} ".join(named)

    @property
    def metadata(self) -> dict[str, Any]:
        """The request in the format of a line of GenEval's `evaluation_metadata.jsonl`."""
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
                # In GenEval's format, the object with the relation comes second, and the relation
                # names the index of the reference object.
                include = include[::-1]
                include[1]["position"] = [self.relation, 0]
            rules = {"include": include}
        return {"tag": self.skill, **rules, "prompt": self.caption}


def all_requests(skill: str, difficulty: Difficulty = HARD) -> list[Request]:
    """Return all requests of a skill in a fixed order, held-out combinations included.

    Example:
      >>> {skill: len(all_requests(skill)) for skill in ("counting", "position")}
      {'counting': 15, 'position': 80}
    """
    shapes, uncoloured = difficulty.shapes, ("single_object", "two_object", "position")
    colours = [None] if skill in uncoloured else difficulty.colours
    things = list(itertools.product(shapes, colours))
    if skill in ("single_object", "colors"):
        return [Request(skill, (thing,)) for thing in things]
    if skill == "counting":
        return [Request(skill, ((s, None),) * n) for n, s in itertools.product(NUMBERS, shapes)]
    pairs = [pair for pair in itertools.product(things, things) if pair[0][0] != pair[1][0]]
    if skill == "position":
        return [Request(skill, pair, r) for r, pair in itertools.product(RELATIONS, pairs)]
    if skill == "color_attr":
        pairs = [pair for pair in pairs if pair[0][1] != pair[1][1]]
    return [Request(skill, pair) for pair in pairs]


def make_scene(
    request: Request,
    rng: np.random.Generator,
    *,
    only_seen: bool,
    difficulty: Difficulty = HARD,
) -> Scene:
    """Sample a scene that fulfils a request: open colours, positions, sizes and background.

    Args:
      request: one of the difficulty's requests.
      rng: the source of randomness.
      only_seen: choose open colours such that the scene has no held-out combination.
      difficulty: what the scene may contain.

    Raises:
      ValueError: `only_seen` is set, but the request itself is held out from training.
    """
    if only_seen and not request.seen:
        raise ValueError(f"{request.caption!r} is held out from training")

    def colour_of(shape: str, colour: str | None) -> str:
        if colour:
            return colour
        colours = difficulty.colours
        fitting = [c for c in colours if not (only_seen and (c, shape) in UNSEEN_COLOURS)]
        return fitting[rng.integers(len(fitting))]

    things = [(shape, colour_of(shape, colour)) for shape, colour in request.objects]
    light, background, tint = 1.0, ((GREY, GREY), (GREY, GREY)), (0.0, 0.0, 0.0)
    if not difficulty.plain:
        low = rng.uniform(0.15, 0.75)
        (top_left, top_right), (low_left, low_right) = (low + rng.uniform(0, 0.12, (2, 2))).tolist()
        background = ((top_left, top_right), (low_left, low_right))
    places = _sample_places(len(things), request.relation, rng, difficulty)
    objects = tuple(Object(*thing, *place) for thing, place in zip(things, places, strict=True))
    if not difficulty.plain:
        light, tint = rng.uniform(0.9, 1.04), tuple(rng.uniform(-0.02, 0.02, 3).tolist())
    return Scene(request.caption, request.skill, objects, light, background, tint)


def _sample_places(
    count: int, relation: str | None, rng: np.random.Generator, difficulty: Difficulty
) -> list[tuple[float, float, float]]:
    """Sample (x, y, size) of objects that don't touch, by rejection sampling.

    Args:
      relation: position of the first object relative to the second, or None.
    """
    while True:
        sizes = rng.uniform(*difficulty.sizes[count - 1], count).tolist()
        places = (_in_cells if difficulty.cells else _anywhere)(sizes, rng, difficulty)
        if len(places) == count and (relation is None or relation_holds(relation, *places)):
            return places


def _anywhere(
    sizes: list[float], rng: np.random.Generator, difficulty: Difficulty
) -> list[tuple[float, float, float]]:
    """Place objects at random; return fewer than asked for if one finds no free place."""
    places: list[tuple[float, float, float]] = []
    for size in sizes:
        for _ in range(PLACEMENT_TRIES):
            x, y = rng.uniform(size + MIN_GAP, 1 - size - MIN_GAP, 2).tolist()
            if all(max(abs(x - a), abs(y - b)) >= size + c + MIN_GAP for a, b, c in places):
                places.append((x, y, size))
                break
    return places


def _in_cells(
    sizes: list[float], rng: np.random.Generator, difficulty: Difficulty
) -> list[tuple[float, float, float]]:
    """Place objects near the centres of different cells of a grid."""
    cells, jitter = difficulty.cells, difficulty.jitter
    chosen = rng.choice(cells**2, len(sizes), replace=False)
    centres = (np.stack([chosen % cells, chosen // cells], axis=1) + 0.5) / cells
    places = centres + rng.uniform(-jitter, jitter, centres.shape)
    return [(x, y, size) for (x, y), size in zip(places.tolist(), sizes, strict=True)]


def relation_holds(
    relation: str, first: tuple[float, float, float], second: tuple[float, float, float]
) -> bool:
    """Return whether the first of two (x, y, size) clearly has a relation to the second.

    The distance in the relation's direction must separate the two objects, and exceed the distance
    in the other direction by `RELATION_MARGIN`.
    """
    dx, dy = first[0] - second[0], first[1] - second[1]
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    across = abs(dy) if relation in RELATIONS[:2] else abs(dx)
    return along >= first[2] + second[2] + MIN_GAP and along >= across + RELATION_MARGIN


# Probability that a training caption names colours although its skill doesn't require them, as in
# "a red circle left of a blue square". Such captions connect colours with positions.
COLOURED_SHARE = 0.5


def training_scene(index: int, seed: int = 0, difficulty: Difficulty = HARD) -> Scene:
    """Return the `index`-th training scene of a seed; held-out combinations don't occur.

    All skills are equally likely.

    Example:
      >>> scene = training_scene(7)
      >>> scene.caption, [(thing.shape, thing.colour) for thing in scene.objects]
      ('a circle above a square', [('circle', 'green'), ('square', 'pink')])
    """
    rng = np.random.default_rng([seed, index])
    skill = SKILLS[rng.integers(len(SKILLS))]
    while True:
        request = _random_request(skill, rng, difficulty)
        if request.seen:
            return make_scene(request, rng, only_seen=True, difficulty=difficulty)


def unseen_scene(index: int, seed: int = 0, difficulty: Difficulty = HARD) -> Scene:
    """Return the `index`-th scene of a seed with a combination that is held out from training.

    All skills that have such combinations are equally likely.

    Example:
      >>> unseen_scene(0).caption == unseen_scene(0).caption
      True
    """
    rng = np.random.default_rng([seed, index])
    unseen = _unseen_requests(difficulty)
    requests = unseen[rng.integers(len(unseen))]
    request = requests[rng.integers(len(requests))]
    return make_scene(request, rng, only_seen=False, difficulty=difficulty)


@functools.cache
def _unseen_requests(difficulty: Difficulty) -> list[list[Request]]:
    """Return the requests that are held out from training, for each skill that has some."""
    by_skill = [
        [ask for ask in all_requests(skill, difficulty) if not ask.seen] for skill in SKILLS
    ]
    return [requests for requests in by_skill if requests]


def _random_request(skill: str, rng: np.random.Generator, difficulty: Difficulty) -> Request:
    shapes, colours = difficulty.shapes, difficulty.colours

    def shape() -> str:
        return shapes[rng.integers(len(shapes))]

    def colour(always: bool = False) -> str | None:
        named = always or rng.random() < COLOURED_SHARE
        return colours[rng.integers(len(colours))] if named else None

    if skill in ("single_object", "colors"):
        return Request(skill, ((shape(), colour(True) if skill == "colors" else None),))
    if skill == "counting":
        thing = shape(), colour()
        return Request(skill, (thing,) * int(rng.integers(2, 5)))
    first, second = rng.choice(len(shapes), 2, replace=False)
    coloured = skill == "color_attr" or (skill == "position" and rng.random() < COLOURED_SHARE)
    pair = tuple((shapes[i], colour(True) if coloured else None) for i in (first, second))
    relation = RELATIONS[rng.integers(4)] if skill == "position" else None
    return Request(skill, pair, relation)
