"""Models of known sizes on random data, for `tp_jax.bench`: configs/bench.py:MODEL.

MODEL is DiT-S/2 (or B, L, XL and any patch), MMDiT (four blocks in the shape of Stable Diffusion
3), SD3-medium, tiny or tiny-MMDiT; DiT-S/2 if it is left out.
"""

from ml_collections import ConfigDict

from tp_jax.performance.standard import standard_config


def get_config(model: str = "DiT-S/2") -> ConfigDict:
    """Return the config; every number is ours except the sizes of published models."""
    return standard_config(model)
