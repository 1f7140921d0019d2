"""Write sit.npz next to this script, from the class SiT of willisma/SiT.

    python make_sit.py --sit=PATH_TO_A_CLONE_OF_willisma/SiT

Needs torch and timm in the versions that README.md lists, and diffusers, which make.py imports. The
tests only read the file.
"""

import argparse
import importlib
import json
import pathlib
import sys

import numpy as np
import torch
from make import DIT_CONFIG, normal, randomize, torchvision_optional, weights


def make_sit(models):
    """Arrays of sit.npz."""
    model = randomize(models.SiT(**DIT_CONFIG), seed=21)
    random = np.random.RandomState(22)
    x = normal(random, 3, 4, 8, 8)
    t = np.array([0.0, 0.37, 1.0], np.float32)
    y = np.array([3, 10, 7])
    out = model(*(torch.from_numpy(array) for array in (x, t, y)))
    config = np.array(json.dumps(DIT_CONFIG, sort_keys=True))
    return weights(model) | {"config": config, "x": x, "t": t, "y": y, "out": out.numpy()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sit", required=True, help="a clone of willisma/SiT")
    sys.path.insert(0, parser.parse_args().sit)
    torch.set_num_threads(1)
    with torchvision_optional():
        models = importlib.import_module("models")
    path = pathlib.Path(__file__).parent / "sit.npz"
    np.savez_compressed(path, **make_sit(models))
    print(f"wrote {path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
