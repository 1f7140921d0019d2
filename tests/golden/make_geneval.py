"""Write geneval.json next to this script.

    python make_geneval.py --geneval=PATH_TO_A_CLONE_OF_djghosh13/geneval

Needs numpy and pillow. The evaluator's `evaluate_image` runs unchanged. Boxes and colours from
formulas replace its two networks, and stubs replace the packages that only the networks need.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import types

import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from detection_formula import CASES, CLASSES, PAIRS, boxes, case, colour  # noqa: E402


def make_evaluator(folder):
    """Import the evaluator with its default options, without networks and with three classes."""
    data = types.SimpleNamespace(Dataset=object)
    cuda = types.SimpleNamespace(is_available=lambda: True)
    api = types.SimpleNamespace(init_detector=None, inference_detector=None)
    sys.modules |= {
        "torch": types.SimpleNamespace(cuda=cuda, utils=types.SimpleNamespace(data=data)),
        "pandas": types.SimpleNamespace(),
        "mmdet": types.SimpleNamespace(apis=api),
        "mmdet.apis": api,
        "open_clip": types.SimpleNamespace(),
        "clip_benchmark": types.SimpleNamespace(),
        "clip_benchmark.metrics": types.SimpleNamespace(
            zeroshot_classification=types.SimpleNamespace()
        ),
    }
    sys.path.insert(0, str(folder))
    import evaluate_images as evaluator

    evaluator.object_detector, evaluator.classnames = None, CLASSES
    evaluator.color_classification = lambda image, found, name: [colour(box) for box, _ in found]
    # The defaults of its command line.
    evaluator.THRESHOLD, evaluator.COUNTING_THRESHOLD = 0.3, 0.9
    evaluator.MAX_OBJECTS, evaluator.NMS_THRESHOLD = 16, 1.0
    evaluator.POSITION_THRESHOLD = 0.1
    return evaluator


def verdict(evaluator, picture, seed):
    """Return [whether the image is correct, the number of boxes considered of each class]."""
    found, metadata = case(seed)
    evaluator.inference_detector = lambda detector, path: [found[name] for name in CLASSES]
    result = evaluator.evaluate_image(picture, metadata)
    details = json.loads(result["details"])
    return [result["correct"], [len(details.get(name, [])) for name in CLASSES]]


def main():
    parser = argparse.ArgumentParser(description="Regenerate the golden verdicts.")
    parser.add_argument(
        "--geneval", type=pathlib.Path, required=True, help="a clone of djghosh13/geneval"
    )
    parser.add_argument("--out", default=HERE, type=pathlib.Path, help="output folder")
    args = parser.parse_args()
    evaluator = make_evaluator(args.geneval / "evaluation")
    with tempfile.TemporaryDirectory() as folder:
        picture = str(pathlib.Path(folder) / "grey.png")
        Image.new("RGB", (8, 8)).save(picture)
        verdicts = [verdict(evaluator, picture, seed) for seed in range(CASES)]
    pairs = boxes(np.random.RandomState(0), 2 * PAIRS).reshape(PAIRS, 2, 5)
    relations = [sorted(evaluator.relative_position((a,), (b,))) for a, b in pairs]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "geneval.json"
    path.write_text(json.dumps({"verdicts": verdicts, "relations": relations}) + "\n")
    right = sum(correct for correct, _ in verdicts)
    print(f"{path.name}: {path.stat().st_size} bytes, {right} of {CASES} correct")


if __name__ == "__main__":
    main()
