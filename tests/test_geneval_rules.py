"""GenEval's rules, checked by hand and against the official evaluator."""

import json
import pathlib

import detection_formula
import numpy as np
import pytest
from benchmarks import PROMPTS, detections

from tp_jax.evals.geneval.rules import Detection, judge, relations, select

GOLDEN = pathlib.Path(__file__).parent / "golden"


def test_at_most_16_objects_above_the_threshold_are_selected_by_score():
    found = {
        "cat": [Detection(np.zeros(4), s) for s in (0.3, 0.31, float(np.float32(0.9)), 0.91)],
        "dog": [Detection(np.zeros(4), 0.1)],
        "cup": [Detection(np.zeros(4), 0.5 + i / 64) for i in range(20)],
    }
    chosen = select(found, "colors")
    assert [one.score for one in chosen["cat"]] == [0.91, pytest.approx(0.9), 0.31]
    assert "dog" not in chosen
    assert [one.score for one in chosen["cup"]] == [0.5 + i / 64 for i in range(19, 3, -1)]
    assert [one.score for one in select(found, "counting")["cat"]] == [0.91]


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        ((0, 0), set()),
        ((-20, 0), set()),  # the margin is a tenth of both widths: 20
        ((-40, 0), set()),  # half of the distance is within the margin
        ((-41, 0), {"left of"}),
        ((41, 0), {"right of"}),
        ((0, -41), {"above"}),
        ((0, 41), {"below"}),
        ((-500, 500), {"left of", "below"}),
        ((500, 240), {"right of"}),  # the vertical share is less than half of the distance
    ],
)
def test_relations_at_their_thresholds(shift, expected):
    here = np.array([300, 300, 400, 400], np.float32)
    assert relations(here + np.array(shift * 2, np.float32), here) == expected


def test_number_of_objects_is_judged():
    two = PROMPTS[1]
    box = (0, 0, 9, 9)
    assert judge({"cat": detections(box, box)}, two) == (True, "")
    assert judge({"cat": detections(box)}, two) == (False, "cat: 1, must be 2 or more")
    assert judge({"cat": detections(box, box, box)}, two) == (False, "cat: 3, must be under 3")
    assert judge({}, two)[0] is False
    assert judge({"cat": detections(box, box, box), "dog": detections(box)}, PROMPTS[0])[0]


def test_only_the_best_scored_objects_are_checked_for_colour():
    prompt = {"include": [{"class": "cat", "count": 2, "color": "red"}]}
    objects = {"cat": detections(*[(i, 0, i + 9, 9) for i in range(4)])}

    def colours(names):
        def name_colours(group, name):
            assert (len(group), name) == (2, "cat")
            return [names[int(one.box[0])] for one in group]

        return name_colours

    assert judge(objects, prompt, colours(["red", "red", "blue", "blue"])) == (True, "")
    right, why = judge(objects, prompt, colours(["red", "blue", "red", "red"]))
    assert (right, why) == (False, "cat: red, blue, must be 2 red")


def test_position_must_hold_for_every_pair_of_objects():
    left, middle, right = (0, 0, 50, 50), (200, 0, 250, 50), (400, 0, 450, 50)
    prompt = PROMPTS[3]
    assert judge({"cat": detections(right), "dog": detections(left)}, prompt) == (True, "")
    # Only the dog with the highest score counts.
    assert judge({"cat": detections(middle), "dog": detections(left, right)}, prompt)[0]
    assert judge({"cat": detections(middle), "dog": detections(right, left)}, prompt) == (
        False,
        "dog: right of the other object, must be left of it",
    )
    right_of_two = {"include": [{"class": "cat", "count": 2}, prompt["include"][1]]}
    assert judge({"cat": detections(middle, right), "dog": detections(left)}, right_of_two)[0]
    assert not judge({"cat": detections(right, left), "dog": detections(middle)}, right_of_two)[0]
    assert judge({"dog": detections(left)}, prompt)[1].splitlines() == [
        "cat: 0, must be 1 or more",
        "dog: must be left of an object that wasn't found as required",
    ]


def test_verdicts_equal_those_of_the_official_evaluator():
    golden = json.loads((GOLDEN / "geneval.json").read_text())["verdicts"]
    assert len(golden) == detection_formula.CASES
    for seed, expected in enumerate(golden):
        boxes, metadata = detection_formula.case(seed)
        found = {name: [Detection(b[:4], b[4]) for b in rows] for name, rows in boxes.items()}
        objects = select(found, metadata["tag"])
        right, why = judge(
            objects, metadata, lambda group, _: [detection_formula.colour(o.box) for o in group]
        )
        counts = [len(objects.get(name, [])) for name in detection_formula.CLASSES]
        assert [right, counts] == expected, (seed, metadata, why)
        assert right == (why == "")


def test_relations_equal_those_of_the_official_evaluator():
    golden = json.loads((GOLDEN / "geneval.json").read_text())["relations"]
    count = detection_formula.PAIRS
    boxes = detection_formula.boxes(np.random.RandomState(0), 2 * count).reshape(count, 2, 5)
    assert [sorted(relations(a[:4], b[:4])) for a, b in boxes] == golden
