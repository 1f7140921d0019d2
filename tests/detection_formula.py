"""Seeded random detections and prompts, the inputs of GenEval's golden verdicts."""

import numpy as np

CLASSES = ("cat", "dog", "cup")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
CASES, PAIRS = 600, 2000


def boxes(random, count):
    """Random boxes [count, 5] float32: left, top, right, bottom in whole pixels, then the score."""
    corner = random.randint(0, 200, (count, 2))
    size = random.randint(1, 120, (count, 2))
    score = random.choice([0.2, 0.3, 0.31, 0.6, 0.9, 0.91, 0.95], (count, 1))
    score = score - random.randint(0, 1000, (count, 1)) * 1e-6
    return np.concatenate([corner, corner + size, score], axis=1).astype(np.float32)


def case(seed):
    """The boxes of each class, and the metadata of the prompt to judge them by."""
    random = np.random.RandomState(seed)
    found = {name: boxes(random, random.choice([0, 1, 2, 3, 5, 25])) for name in CLASSES}
    tag = TAGS[seed % len(TAGS)]
    first, second = ({"class": name, "count": 1} for name in random.permutation(CLASSES)[:2])
    include = [first, second] if tag in ("two_object", "position", "color_attr") else [first]
    metadata = {"tag": tag, "include": include, "prompt": f"number {seed}"}
    for clause in include:
        clause["class"] = str(clause["class"])
        if "color" in tag:
            clause["color"] = str(random.choice(COLOURS[:3]))
    if tag == "counting":
        first["count"] = int(random.randint(1, 4))
        metadata["exclude"] = [{"class": first["class"], "count": first["count"] + 1}]
    if tag == "position":
        first["count"] = int(random.choice([1, 1, 2]))
        second["position"] = [str(random.choice(RELATIONS)), 0]
    return found, metadata


def colour(box):
    """A colour that depends only on the box, mostly one of the first three."""
    return COLOURS[int(box[0]) % 3 if int(box[1]) % 4 else int(box[2]) % 10]
