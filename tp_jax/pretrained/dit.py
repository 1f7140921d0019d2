"""Convert the weights of facebookresearch/DiT."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tp_jax.messages.errors import UserError
from tp_jax.models import DiTConfig
from tp_jax.models.dit_config import SIZES
from tp_jax.models.layers import position_embedding
from tp_jax.pretrained.state_dict import StateDict, square_side, stack_layers
from tp_jax.thinking import ThinkingConfig

TIME_FEATURES = 256
HEADS = {size["width"]: size["heads"] for size in SIZES.values()}


def infer_dit(state: Mapping[str, np.ndarray], heads: int | None = None) -> DiTConfig:
    """Infer the config of a DiT, without thinking layers, from the shapes of its weights.

    Args:
      state: a state dict of facebookresearch/DiT.
      heads: number of attention heads, which the shapes don't determine; by default that of the
        published DiT of the same width.

    Raises:
      UserError: a weight that determines the size is missing, or the shapes aren't those of a DiT.
    """
    weights = StateDict(state)
    _, tokens, width = weights.shape("pos_embed", 3)
    _, channels, patch, _ = weights.shape("x_embedder.proj.weight", 4)
    (outputs,) = weights.shape("final_layer.linear.bias", 1)
    (hidden,) = weights.shape("blocks.0.mlp.fc1.bias", 1)
    rows, _ = weights.shape("y_embedder.embedding_table.weight", 2)
    if heads is None and width not in HEADS:
        raise UserError(
            f"no published DiT has width {width}, so the number of attention heads is unknown: "
            f"give --heads"
        )
    if outputs not in (patch**2 * channels, 2 * patch**2 * channels):
        raise UserError(
            f"final_layer.linear.bias has {outputs} outputs: a DiT on {channels} channels has "
            f"{patch**2 * channels}, or twice that with a learned variance"
        )
    return DiTConfig(
        image_size=patch * square_side(tokens, "pos_embed"),
        channels=channels,
        out_channels=outputs // patch**2,
        patch=patch,
        depth=weights.count(r"blocks\.(\d+)\."),
        width=width,
        heads=HEADS[width] if heads is None else heads,
        mlp_ratio=hidden // width,
        num_classes=rows - 1,
        thinking=ThinkingConfig(layers=()),
    )


def read_dit(state: Mapping[str, np.ndarray], config: DiTConfig) -> dict[str, Any]:
    """Convert a state dict of facebookresearch/DiT to the "base" parameters of our DiT.

    Args:
      state: the state dict.
      config: the result of `infer_dit`.

    Raises:
      UserError: a weight is missing, unused or has another shape, or the position table isn't the
        sine-cosine table that our model computes.
    """
    weights, width = StateDict(state), config.width
    grid = np.arange(config.image_size // config.patch)
    weights.check_position_table("pos_embed", position_embedding(width, grid, grid))

    def block(layer: int) -> dict[str, Any]:
        prefix = f"blocks.{layer}."
        widths = (width, config.mlp_ratio * width, width)
        return {
            "adaln": weights.linear(prefix + "adaLN_modulation.1", width, 6 * width),
            "qkv": weights.packed_qkv(prefix + "attn.qkv", width),
            "proj": weights.linear(prefix + "attn.proj", width, width),
            "mlp": weights.mlp(prefix + "mlp.fc1", prefix + "mlp.fc2", widths),
        }

    # The last row is the null class of classifier-free guidance, in torch and here.
    table = weights.take("y_embedder.embedding_table.weight", config.num_classes + 1, width)
    times = ("t_embedder.mlp.0", "t_embedder.mlp.2")
    outputs = config.patch**2 * config.out_channels
    base = {
        "patch_embed": weights.patch_embed("x_embedder.proj", config.channels, width, config.patch),
        "time_embed": weights.mlp(*times, (TIME_FEATURES, width, width)),
        "label_embed": {"embedding": table},
        "blocks": stack_layers(block, range(config.depth)),
        "final": {
            "adaln": weights.linear("final_layer.adaLN_modulation.1", width, 2 * width),
            "out": weights.linear("final_layer.linear", width, outputs),
        },
    }
    weights.check_all_used()
    return base
