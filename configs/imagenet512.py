"""ImageNet 512×512, class-conditional: configs/imagenet256.py on 64×64×4 latents.

The variants are the same. From DiT: the recipe of 256×256, with 3 M steps from scratch.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

IMAGENET256 = runpy.run_path(str(pathlib.Path(__file__).with_name("imagenet256.py")))


def get_config(argument: str = "") -> ConfigDict:
    config = IMAGENET256["get_config"]()
    config.model.image_size = 64
    config.data.dir = "data/imagenet512"  # ours
    config.init.base = "checkpoints/dit-xl-2-512"  # ours
    config = IMAGENET256["apply_variants"](config, argument)
    if "scratch" in argument and "debug" not in argument:
        config.train.steps = 3_000_000
    return config
