"""Write dpg.json next to this script.

    PYTHONHASHSEED=0 python make_dpg.py --ella=PATH_TO_A_CLONE_OF_TencentQQGYLab/ELLA

Needs numpy, pandas, pillow and tqdm. The official script's `main` runs unchanged in one process.
Its network is replaced by answers from a formula, and torch and accelerate, which only the network
needs, by stubs. PYTHONHASHSEED fixes the order of categories, which the script keeps in a set.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import types

import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from question_formula import CASES, ITEMS, answer, csv_text  # noqa: E402

SIDE = 4  # pixels per side of a tile


class Network:
    """Answer questions by formula; the colour of the image encodes its item and tile."""

    def __init__(self, device):
        del device

    def vqa(self, image, question):
        item, tile, _ = image.getpixel((0, 0))
        return answer(ITEMS[item], tile, question)


class OneProcess:
    """The part of accelerate's `Accelerator` that the script uses, for one process."""

    is_main_process, device, num_processes, process_index = True, "cpu", 1, 0

    def prepare(self, model):
        return model

    def wait_for_everyone(self):
        pass


def make_script(folder):
    """Import the official script with stubs for torch, accelerate and its network."""
    module = types.SimpleNamespace(Module=object)
    sys.modules |= {
        "torch": types.SimpleNamespace(nn=module),
        "accelerate": types.SimpleNamespace(Accelerator=OneProcess),
        "accelerate.utils": types.SimpleNamespace(gather_object=lambda values: values),
    }
    sys.path.insert(0, str(folder))
    import compute_dpg_bench as script

    script.MPLUG = Network
    script.os = types.SimpleNamespace(listdir=lambda path: sorted(os.listdir(path)))
    script.time.sleep = lambda seconds: None
    return script


def run(script, case):
    """Run the script on one case; return the contents of the two files that it writes."""
    folder = pathlib.Path("images")
    folder.mkdir(exist_ok=True)
    for index, item in enumerate(ITEMS):
        pixels = np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8)
        pixels[..., 0] = index
        pixels[:, SIDE:, 1] += 1
        pixels[SIDE:, :, 1] += 2
        Image.fromarray(pixels).save(folder / f"{item}.png")
    pathlib.Path("questions.csv").write_text(csv_text(case), newline="")
    sys.argv = ["script", "--image-root-path=images", f"--resolution={SIDE}", "--pic-num=4",
                "--csv=questions.csv", "--res-path=scores.txt"]  # fmt: skip
    script.main()
    return {
        "results": pathlib.Path("scores.txt").read_text(),
        "detail": pathlib.Path("scores_detail.txt").read_text(),
    }


def main():
    parser = argparse.ArgumentParser(description="Regenerate the golden scores.")
    parser.add_argument(
        "--ella", type=pathlib.Path, required=True, help="a clone of TencentQQGYLab/ELLA"
    )
    parser.add_argument("--out", default=HERE, type=pathlib.Path, help="output folder")
    args = parser.parse_args()
    out = args.out.resolve()
    script = make_script((args.ella / "dpg_bench").resolve())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = {case: run(script, case) for case in CASES}
    out.mkdir(parents=True, exist_ok=True)
    path = out / "dpg.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
