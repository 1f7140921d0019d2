"""Configs of the models that benchmarks measure; `configs/bench.py` gives them to commands.

This module doesn't import jax, so that commands can show their help and check a config quickly.
"""

import re

from ml_collections import ConfigDict

from tp_jax.config import default
from tp_jax.messages.errors import UserError
from tp_jax.models import dit_config, mmdit_config

NAMES = "DiT-S/2 (any of S, B, L, XL, and any patch), MMDiT, SD3-medium, tiny or tiny-MMDiT"


def standard_config(name: str) -> ConfigDict:
    """Return the config of a model of known size, on random data, with one thinking layer.

    Every field can be changed afterwards. Sampling takes few steps, because its time is
    proportional to them.

    Args:
      name: "DiT-SIZE/PATCH" is a model of facebookresearch/DiT on latents of 32×32; "MMDiT" has
        four blocks, 512 wide, of the shape of Stable Diffusion 3; "SD3-medium" is that model at
        512×512; "tiny" and "tiny-MMDiT" are for trying things out.

    Raises:
      UserError: the name is unknown.

    Example:
      >>> standard_config("DiT-B/4").model.width
      768
    """
    if name in ("MMDiT", "SD3-medium", "tiny-MMDiT"):
        return _mmdit_config(name)
    found = re.fullmatch(r"DiT-(S|B|L|XL)/(\d+)|(tiny)", name)
    if not found:
        raise UserError(f"--config: unknown model {name!r}: choose {NAMES}")
    config = default(model="dit", diffusion="gaussian")
    if found[3]:
        config.model.update(image_size=8, patch=2, depth=2, width=32, heads=2, num_classes=10)
    else:
        config.model.update(image_size=32, patch=int(found[2]), **dit_config.SIZES[found[1]])
    large = found[1] in ("L", "XL")
    config.train.batch_size = 32 if large else 16 if found[1] == "B" else 8
    # As facebookresearch/DiT samples: guidance on the first three channels.
    config.sampling.update(sampler="ddpm", guidance_scale=1.5, guidance_channels=3)
    return _finish(config, large)


def _mmdit_config(name: str) -> ConfigDict:
    config = default(model="mmdit", diffusion="flow")
    if name == "SD3-medium":
        config.model.update(image_size=64, **mmdit_config.SIZES[name])
    elif name == "MMDiT":
        config.model.update(image_size=32, depth=4, width=512, heads=8, text_tokens=77)
    else:
        config.model.update(image_size=8, depth=2, width=32, heads=2, text_tokens=5)
        config.model.update(text_width=16, pooled_width=8, max_grid=8, base_grid=4)
    config.train.batch_size = 8
    config.sampling.update(sampler="euler", guidance_scale=5.0)
    return _finish(config, large=name == "SD3-medium")


def _finish(config: ConfigDict, large: bool) -> ConfigDict:
    config.data.source = "synthetic"
    config.model.dtype = "bfloat16" if large else "float32"
    config.model.thinking.update(layers=(config.model.depth // 2,), rank=128 if large else 32)
    config.sampling.steps = 5
    return config
